"""What is common to all HTTP requests: routes, the pipeline, bodies, authentication, faults, lists."""
