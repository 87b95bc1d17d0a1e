"""The wire contract as values: errors, records, JSON, parameters, and the table of operations. Pure."""
