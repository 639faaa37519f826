"""Policies: the rules, and the policy file of a site."""
