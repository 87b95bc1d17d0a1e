"""The SQLite engine of the store: one file, one connection, one writer."""
