"""The tables and the sessions on them. Holds what must survive: rows, orders, usages. Decides nothing."""
