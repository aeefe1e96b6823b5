"""The tables of conversions and conversion processes."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, Table, Text, UniqueConstraint

from shortener.storage.schema.base import RowId, metadata
from shortener.storage.types import Instant, Json, Money

conversions = Table(
    "conversions",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("message_id", BigInteger, nullable=False),
    Column("hit_id", BigInteger),
    Column("action", Text, nullable=False),
    Column("transaction_id", Text, nullable=False),  # The transaction id of the conversion, or "" if the report contained none.
    Column("status", Text),
    Column("disposition", Text),  # The disposition of the conversion: positive, negative or NULL (none).
    Column("value", Money),
    Column("currency", Text),
    Column("at", Instant, nullable=False),  # The reported time of the first revision. The conversion is counted at this time.
    Column("received_at", Instant, nullable=False),
    Column("metadata", Json),
    # The number of the latest revision of the conversion, whose values this row contains.
    Column("revision", Integer, nullable=False, server_default="1"),
    Column("updated_at", Instant),  # The time when the latest revision was received. NULL: there is only one revision.
    Column("latest_at", Instant),  # The reported time of the latest revision. NULL: there is only one revision.
    # The action and the transaction id as they were reported. The columns `action` and `transaction_id` contain them case-folded,
    # and identify the conversion. NULL: the reported text is already case-folded.
    Column("action_text", Text),
    Column("transaction_text", Text),
    Column("warnings", Json),  # A list of warnings about the report, as texts.
    # The category and the action under which the conversion is counted, such as "positive:sale". NULL: the row is from an older
    # version, which did not count by action.
    Column("counted_as", Text),
    UniqueConstraint("message_id", "action", "transaction_id"),
    Index("conversions_by_application", "application_id", "id"),
)

#: The first conversions of messages: one row for each message that has conversions. If several conversions of a message are
#: stored at the same time, the primary key decides which of them is the first. A process of a release before 0.3 writes no row. A
#: background job adds this row later (conversions/first_conversions.py).
first_conversions = Table(
    "first_conversions",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),  # The row id of the message.
    # The time of the conversion. The figure `converted_messages` counts the message at this time.
    Column("at", Instant, nullable=False),
)

#: The earlier revisions of conversions. The latest revision is the row in `conversions`.
conversion_revisions = Table(
    "conversion_revisions",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("conversion_id", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("status", Text),
    Column("disposition", Text),
    Column("value", Money),
    Column("currency", Text),
    Column("at", Instant, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("metadata", Json),
    Column("warnings", Json),
    UniqueConstraint("conversion_id", "revision"),
)

#: The conversion actions that have their own counts. Each application has a limited number of them.
conversion_actions = Table(
    "conversion_actions",
    metadata,
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    Column("action", Text, primary_key=True),
)

#: Reports of conversions that were rejected, each with the reason. Parameters that may be credentials are not stored.
refused_conversions = Table(
    "refused_conversions",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("endpoint", Text, nullable=False),  # The method and the path of the request. A postback key in the path is not stored.
    Column("reason", Text, nullable=False),  # The name of an ErrorCode.
    Column("description", Text, nullable=False),
    Column("details", Json, nullable=False),
    Column("message_id", Text),  # The message id as it was reported. An erasure of the message finds the row by this id.
    Column("parameters", Json, nullable=False),
    Index("refused_conversions_by_application", "application_id", "id"),
)

#: Conversion processes of the Infobip API. Messages whose `tracking` objects have the same track and type belong to the same
#: process. Messages without a `tracking` object belong to a process whose track and type are "".
processes = Table(
    "processes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False),
    Column("process_key", Text, nullable=False, unique=True),
    Column("track", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("application_id", "track", "type"),
)
