"""The tables of prices, balances and opt-outs."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, Table, Text

from shortener.storage.schema.base import RowId, metadata
from shortener.storage.types import Instant, Money

#: Prices of one SMS segment by the first digits of the recipient's number. A price with the application id 0 applies to all
#: applications.
prices = Table(
    "prices",
    metadata,
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    # The first digits of the phone numbers, without a plus sign. "" means all numbers that no other prefix matches.
    Column("prefix", Text, primary_key=True),
    Column("price", Money, nullable=False),
)

#: The balances of prepaid applications.
balances = Table(
    "balances",
    metadata,
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    Column("amount", Money, nullable=False),
    Column("currency", Text, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

#: Changes of balances that people made with the API or the command line. The costs of messages are in `sends` instead.
balance_changes = Table(
    "balance_changes",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    Column("amount", Money, nullable=False),
    Column("balance", Money, nullable=False),  # The balance after the change.
    Column("actor", Text, nullable=False),
    Index("balance_changes_by_application", "application_id", "id"),
)

#: Recipients who refused further messages of an application.
opt_outs = Table(
    "opt_outs",
    metadata,
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    Column("phone", Text, primary_key=True),
    Column("at", Instant, nullable=False),
    # How the opt-out was made: "STOP" (a reply of the recipient), "api" (an API call) or "operator" (the command line).
    Column("source", Text, nullable=False),
)
