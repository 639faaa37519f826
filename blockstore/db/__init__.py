"""Tables and sessions for all data that must survive: rows, operations, usages. Decides nothing."""
