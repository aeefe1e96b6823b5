"""SQL conditions on the status of deliveries.

The status is a literal in the SQL and not a parameter, so that the databases can use partial indexes.
"""
# Tested by tests/storage/test_delivery_conditions.py

from __future__ import annotations

from sqlalchemy import literal_column

from shortener.model import DeliveryStatus
from shortener.storage.schema import deliveries

IS_PENDING = deliveries.c.status == literal_column(str(DeliveryStatus.PENDING.value))
IS_DEAD = deliveries.c.status == literal_column(str(DeliveryStatus.DEAD.value))
