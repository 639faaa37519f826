"""The built-in identity service: accounts, their secrets, and tokens.

``accounts.py`` keeps domains, projects, users, roles and grants; ``passwords.py`` hashes; ``tokens.py`` issues and
checks; ``login.py`` exchanges a proof for a token; ``bootstrap.py`` makes the first administrator.
``api/identity/`` speaks Identity v3 over HTTP, and the command line uses the same functions.
"""
