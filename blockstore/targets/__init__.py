"""Targets, which export local volumes: the contract of target plugins, and their loader."""
