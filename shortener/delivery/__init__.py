"""This package sends events to the trackers (endpoints) of customers, signs the requests and retries the failed ones."""
