"""Quota of projects, reservations and reports of pools."""
