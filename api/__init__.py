"""The HTTP face of potstill: routes, response shapes, problem+json, downloads, event streams and pages."""
