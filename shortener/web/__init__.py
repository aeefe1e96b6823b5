"""This package is the HTTP API. Each resource has one module with a list of its endpoints, and `endpoint.py` defines the class
`Endpoint`."""
