"""Rows that a transaction writes together with its main change: events, count deltas and first clicks.

Deliveries and statistics are derived from these rows later, so they always agree with the database.
"""
