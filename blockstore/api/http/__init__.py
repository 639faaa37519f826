"""The machinery of all HTTP requests: routes, the pipeline, bodies, authentication, faults, lists."""
