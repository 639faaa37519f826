"""The tables and the sessions on them. Holds what must survive: rows, operations, usages. Decides nothing."""
