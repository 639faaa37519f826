"""Secrets: the key of attachments, and files with secrets that others can read."""
