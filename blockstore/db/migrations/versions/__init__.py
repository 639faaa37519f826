"""One module a revision, named NUMBER_what.py; the number is the revision."""
