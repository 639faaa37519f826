"""The API of volumes: create, list, change, delete, actions, metadata, transfers, migration."""
