"""Shapes of requests and replies, one file per noun.

Requests are marshmallow schemas: they say what is accepted since which microversion, and every refusal names field,
value and limit. Replies are tables of fields. Used by the API component only; nothing here reads the database.
"""
