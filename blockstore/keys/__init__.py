"""Secrets: the key of attachments, and warnings about files whose secrets others can read."""
