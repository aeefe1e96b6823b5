"""This package sends events to the trackers (endpoints) of customers. It signs the requests and retries failed requests."""
