"""Shapes of requests and replies, one file per noun.

Requests are marshmallow schemas. They define which fields are accepted since which microversion; every refusal names
field, value and limit. Replies are tables of fields. Only the API component uses them; nothing here reads the database.
"""
