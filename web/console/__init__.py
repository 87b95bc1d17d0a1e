"""The console: a page for operators, and the stream of statistics that feeds it."""
