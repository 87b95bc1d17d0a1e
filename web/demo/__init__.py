"""The demo: a server on a temporary directory, sample updates, and a page that shows what becomes of them."""
