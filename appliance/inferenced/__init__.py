"""The inference daemon, put together: models, jobs, routes, metrics."""
