"""The benchmark: `python -m tests.bench`, or `make bench`. Prints a table; asserts nothing unless told --strict."""
