"""This package writes the rows that a transaction adds together with its main change: events, count deltas and first clicks.

Deliveries and statistics are made from these rows later, so they agree with the changes that were committed.
"""
