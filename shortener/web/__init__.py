"""The HTTP interface: one file per resource, each a list of endpoints; `endpoint.py` says what an endpoint is."""
