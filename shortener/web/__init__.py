"""The HTTP interface: one file per resource, each a list of endpoints; `endpoint.py` defines what an endpoint is."""
