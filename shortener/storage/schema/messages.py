"""The tables of messages and their links, and the SQL expressions for the state of a message."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    case,
    exists,
    false,
)

from shortener.model import State
from shortener.storage.schema.base import RowId, metadata, partial_index
from shortener.storage.types import Instant, Json, Money

#: Cohorts: the groups of messages for the statistics. There is one row for each combination of application, campaign, source,
#: recipient's country and conversion process.
cohorts = Table(
    "cohorts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False),
    Column("campaign", Text, nullable=False),  # The campaign of the messages; "" for messages without a campaign.
    Column("source", Text, nullable=False),
    Column("country", Text, nullable=False),  # The ISO 3166 code of the recipient's country; "" if unknown.
    Column("process_id", Integer, nullable=False, server_default="0", index=True),
    UniqueConstraint("application_id", "campaign", "source", "country", "process_id"),
)

messages = Table(
    "messages",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("cohort_id", Integer, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("external_request_id", Text, nullable=False, server_default=""),
    # The hash of the content of the request. A repeat with the same message_id must have the same hash. "": the service generated
    # the message_id.
    Column("content_hash", Text, nullable=False),
    Column("to_address", Text, nullable=False),
    Column("from_address", Text, nullable=False, server_default=""),
    Column("sender_id_id", Text, nullable=False, server_default=""),
    Column("sender_id_alias", Text, nullable=False, server_default=""),
    # The state of the message without clicks. A click adds a row to `first_clicks` and does not change this column (see
    # `current_state`).
    Column("state", SmallInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("sent_at", Instant),
    Column("delivered_at", Instant),
    Column("read_at", Instant),
    Column("failed_at", Instant),
    Column("encoding", Text, nullable=False),
    Column("segments", SmallInteger, nullable=False),
    # The number of billed segments from a delivery report. NULL: no report contained it.
    Column("fragments_count", SmallInteger),
    Column("mt_price", Money),
    Column("report_status", Text),
    Column("reason_code", Text),
    Column("reason_description", Text),
    Column("telecom_message_id", Text),
    Column("callback_url", Text),  # The callback URL of Xoxzo's field lt_callbackurl.
    Column("metadata", Json),
    Column("link_set_id", Integer),  # The link set of the message. NULL: the message has no links, or is older than this column.
    # The track mode with which the message was rewritten, as an index in TRACK_MODES. A repeat of the request uses this mode,
    # because the default mode of the application may have changed. NULL: the message is older than this column.
    Column("track", SmallInteger),
    UniqueConstraint("application_id", "message_id"),
    Index("messages_by_application", "application_id", "id"),
    Index("messages_by_recipient", "to_address", "id"),
    Index("messages_by_cohort", "cohort_id", "id"),  # This index is for lists of the messages of a campaign, newest first.
)

#: Messages with early hits, which are hits before the message was reported as sent (clicks/verdicts/early_hits.py).
early_hits = Table(
    "early_hits",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),  # The row id of the message.
    # The time at which the newest early hit of the message was stored.
    Column("at", Instant, nullable=False),
    # Whether a delivery report for the message has arrived since the hit.
    Column("is_due", Boolean, nullable=False, server_default=false()),
    Index("early_hits_by_at", "at"),
    partial_index("early_hits_due", "id", where="is_due"),
)

#: The first clicks of messages. They are not in `messages`, whose rows are ten times as large. Messages are clicked in random
#: order, so each first click would read and write another page of `messages` (docs/decisions/0013).
first_clicks = Table(
    "first_clicks",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),  # The row id of the message.
    # `at` and `hit_id` are NULL in two cases: the first click was retracted while a click on another link remains, or a
    # transaction inserted the row only as a lock (outbox/first_clicks.py).
    Column("at", Instant),
    Column("hit_id", BigInteger),  # The row id of the hit that is the first click of the message.
    # The clicked links as bits: bit n is set if the link at position n in the message was clicked.
    Column("links", Integer, nullable=False),
)


def is_clicked() -> ColumnElement[bool]:
    """Return the SQL condition that a message was clicked, for a query of `messages`."""
    return exists().where(first_clicks.c.id == messages.c.id, first_clicks.c.at.is_not(None))


#: SQL expressions for the state of a message, and for its state before CLICKTHRU (NULL if it was not clicked). The query must
#: join `messages` and `first_clicks` with an outer join.
current_state: ColumnElement[int] = case((first_clicks.c.at.is_not(None), int(State.CLICKTHRU)), else_=messages.c.state)

previous_state: ColumnElement[int | None] = case((first_clicks.c.at.is_not(None), messages.c.state))

links = Table(
    "links",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("code", Text, nullable=False, unique=True),
    Column("message_id", BigInteger, nullable=False, index=True),
    Column("application_id", Integer, nullable=False),
    Column("cohort_id", Integer, nullable=False),
    # The id of the domain of the link. 0: the link has no domain and begins with BASE_URL.
    Column("domain_id", Integer, nullable=False),
    Column("position", SmallInteger, nullable=False),
    Column("flags", SmallInteger, nullable=False),  # The bits of model.LinkFlag.
    Column("url", Text, nullable=False),
    Column("location", Text),  # The value of the Location header. NULL: it is equal to `url`.
    Column("label", Text),
    Column("fallback_url", Text),
    Column("expires_at", Instant, nullable=False, index=True),
    Column("disabled_at", Instant),
    # The events of a link contain a click number. This is the highest one so far (delivery/fanout.py).
    Column("clicks_numbered", Integer),
    Column("path", Text),  # The path before the code, such as "/ABCDEF". NULL: there is no path.
    Column("link_set_id", Integer),  # The link set that contains only this link. NULL: the link is older than this column.
)

#: The codes of links that the purge has deleted. A new link never gets one of them, because somebody may still open the old
#: message (docs/decisions/0036).
purged_codes = Table(
    "purged_codes",
    metadata,
    Column("code", Text, primary_key=True),
    sqlite_with_rowid=False,
)

#: The changes of links after their message was sent. The keys of `changes` are the names of the changed fields. Each value is
#: [old value, new value].
link_changes = Table(
    "link_changes",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("link_id", BigInteger, nullable=False, index=True),
    Column("application_id", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    Column("actor", Text, nullable=False),  # Who changed the link, such as "key 12" or "command line".
    Column("update_id", BigInteger),  # If the change was part of a link update: the row id of the update.
    Column("changes", Json, nullable=False),
)

#: Link updates: changes of many links, which a process performs in batches (clicks/link_updates.py).
link_updates = Table(
    "link_updates",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False, index=True),
    Column("state", Text, nullable=False),  # The state of the update: counting, running, done or stopped.
    Column("actor", Text, nullable=False),
    Column("filter", Json, nullable=False),
    Column("changes", Json, nullable=False),
    Column("total", BigInteger),  # The number of links to update. NULL: the links are still being counted.
    Column("counted", BigInteger, nullable=False, server_default="0"),
    Column("done", BigInteger, nullable=False, server_default="0"),
    Column("changed", BigInteger, nullable=False, server_default="0"),
    # The progress of the update. The update processes the messages below `last_message_id`, in several ranges of an index.
    # `range_index` is the number of the current range, and `cursor` is the id of the last finished message in this range.
    Column("last_message_id", BigInteger, nullable=False),
    Column("range_index", Integer, nullable=False, server_default="0"),
    Column("cursor", BigInteger, nullable=False, server_default="0"),
    Column("lease_until", Instant),
    Column("owner", Text),  # The process that performs the update at present.
    Column("created_at", Instant, nullable=False),
    Column("finished_at", Instant),
)

#: Erased messages that must be erased again. A transaction or an attempt that ran during the erasure may have stored personal
#: data after it (retention/erasure_repeats.py).
erasure_repeats = Table(
    "erasure_repeats",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),  # The row id of the message.
    Column("due_at", Instant, nullable=False, index=True),
    Column("repeats", SmallInteger, nullable=False),  # How often the erasure was repeated.
)

#: For each client that polls delivery reports, the position up to which it has read the event log (reporting/report_polls.py).
report_polls = Table(
    "report_polls",
    metadata,
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    Column("reader", Text, primary_key=True),  # The vendor's API that the client calls, such as infobip-3.
    Column("after_event_id", BigInteger, nullable=False),  # The position: the next call reads the events after this one.
    Column("returned", Json, nullable=False),  # The ids of the events after the position that the client has already got.
    # The number of calls so far. If it changes during a call, another call of the same client runs at the same time.
    Column("revision", Integer, nullable=False),
)
