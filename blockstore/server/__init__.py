"""The HTTP server: granian speaks HTTP and TLS in Rust, and requests are answered by the WSGI application on threads.

``http.py`` starts and stops it, ``wsgi.py`` turns a request into a call of the application, ``threads.py`` answers
callers in turns, ``connections.py`` limits the open connections of callers.
"""
