"""Delivery of events to the trackers of customers: fan-out, claims, attempts, outcomes, formats, signatures, address guard."""
