"""The built-in identity: who there is, what they may log in with, and the tokens they got for it.

``accounts.py`` keeps domains, projects, users, roles and grants; ``passwords.py`` hashes; ``tokens.py`` issues and
checks; ``login.py`` turns proof into a token; ``bootstrap.py`` makes the first administrator.
``api/identity/`` speaks Identity v3 over HTTP, and the command works on the same functions.
"""
