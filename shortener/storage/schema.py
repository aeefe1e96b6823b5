"""The tables. One schema, two engines; the words are those of `model.py`.

Rows that a message brings with it (message, links, hits, events, deliveries, attempts, conversions) are keyed by the growing
numbers of `ids.py`; what people set up (applications, keys, trackers, domains) is keyed by small numbers of the database.
A change here comes with a migration in `storage/migrations/`; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    TextClause,
    UniqueConstraint,
    and_,
    case,
    exists,
    false,
    or_,
    select,
    text,
    union_all,
)

from shortener.model import State
from shortener.storage.types import Instant, Json, Money

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_by_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "pk": "%(table_name)s_pkey",
    }
)

#: A number of `ids.py` as a key. On SQLite only a column declared INTEGER is the row's own number; any other type gets a second
#: tree, written with every insert and walked with every look-up.
RowId = BigInteger().with_variant(Integer(), "sqlite")

#: What this installation is: the secret's fingerprint, the version of the directory; how far jobs have come.
installation = Table(
    "installation",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

applications = Table(
    "applications",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("company_id", BigInteger),
    # What the application chose (accounts.ApplicationSettings); what it left alone is not stored, so defaults can improve.
    Column("settings", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("disabled_at", Instant),
)

domains = Table(
    "domains",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("host", Text, nullable=False, unique=True),  # lower case, with the port if it has one
    Column("base_url", Text, nullable=False),
    Column("fallback_url", Text),
    Column("created_at", Instant, nullable=False),
    Column("disabled_at", Instant),
)

#: Hosts that no short link leads to any more.
blocked_hosts = Table(
    "blocked_hosts",
    metadata,
    Column("application_id", Integer, primary_key=True, autoincrement=False),  # 0: whosever link it is
    Column("host", Text, primary_key=True),  # lower case, punycode, no port; "*.example.com": every host under it
    Column("created_at", Instant, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),  # the first characters, so that a person can tell keys apart
    Column("permissions", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("revoked_at", Instant),
)

tracker_tokens = Table(
    "tracker_tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("hash", Text, nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
    Column("valid_until", Instant),  # NULL: the current one
)

#: Where events go. `role` is "tracker", or "conversion_url" for the one that the application's own fields make.
trackers = Table(
    "trackers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("role", Text, nullable=False, server_default="tracker"),
    Column("name", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("disabled_reason", Text),
    Column("url", Text, nullable=False),
    Column("topics", SmallInteger, nullable=False),  # bits of model.Topic
    Column("method", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("fields", Json),
    Column("headers", Text),  # encrypted JSON: headers carry credentials
    Column("secret", Text),  # encrypted
    Column("previous_secret", Text),  # encrypted
    Column("previous_secret_until", Instant),
    Column("success", Json, nullable=False),
    # NULL in the next four: what the installation is set to.
    Column("max_attempts", Integer),
    Column("timeout", Json),  # seconds
    Column("concurrency", Integer),
    Column("schedule", Json),  # seconds between attempts
    Column("with_suspected", Boolean, nullable=False, server_default=false()),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("revision", Integer, nullable=False, server_default="1"),  # counts changes, so that a dispatcher knows what it knows
    # Health, written by the dispatcher when it changes (delivery/health.py).
    Column("failures_in_row", Integer, nullable=False, server_default="0"),
    Column("open_until", Instant),  # the breaker is open: no attempts but one probe after this time
    Column("recovering_at", Instant),  # the backlog is being released at a bounded rate, and has come this far
    Column("last_success_at", Instant),
    Column("last_failure_at", Instant),
    # The number of a deleted tracker is never given to another one: its deliveries would go there.
    sqlite_autoincrement=True,
)

#: What statistics are kept by: one row per application, campaign, source, country of the recipient and conversion process.
cohorts = Table(
    "cohorts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False),
    Column("campaign", Text, nullable=False),  # "" when the message has none
    Column("source", Text, nullable=False),
    Column("country", Text, nullable=False),  # ISO 3166, "" when unknown
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
    Column("content_hash", Text, nullable=False),  # what a repeat of the same message_id is compared by
    Column("to_address", Text, nullable=False),
    Column("from_address", Text, nullable=False, server_default=""),
    Column("sender_id_id", Text, nullable=False, server_default=""),
    Column("sender_id_alias", Text, nullable=False, server_default=""),
    # What was reported of it; a click stands in `first_clicks` and leaves this as it was just before (`current_state`).
    Column("state", SmallInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("sent_at", Instant),
    Column("delivered_at", Instant),
    Column("read_at", Instant),
    Column("failed_at", Instant),
    Column("encoding", Text, nullable=False),
    Column("segments", SmallInteger, nullable=False),
    Column("fragments_count", SmallInteger),  # what the carrier billed, when a report said so
    Column("mt_price", Money),
    Column("report_status", Text),
    Column("reason_code", Text),
    Column("reason_description", Text),
    Column("telecom_message_id", Text),
    Column("callback_url", Text),  # Xoxzo's lt_callbackurl
    Column("metadata", Json),
    UniqueConstraint("application_id", "message_id"),
    Index("messages_by_application", "application_id", "id"),
    Index("messages_by_recipient", "to_address", "id"),
    Index("messages_by_cohort", "cohort_id", "id"),  # a campaign's messages, newest first
)

#: What was clicked of a message, for those that were. Not columns of `messages`, whose rows are ten times as large: people click in
#: no order, and a click would read and write a page of its own there (docs/decisions/0013).
first_clicks = Table(
    "first_clicks",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),  # the message's
    # NULL in these two: its first click was taken back, and another link's still stands; or nothing was clicked, and the row is a
    # lock until its transaction ends (outbox/first_clicks.py).
    Column("at", Instant),
    Column("hit_id", BigInteger),  # the hit that was the first click of the message
    Column("links", Integer, nullable=False),  # bit n: the link at position n was clicked
)


def is_clicked() -> ColumnElement[bool]:
    """Whether a message of the query has had its first click."""
    return exists().where(first_clicks.c.id == messages.c.id, first_clicks.c.at.is_not(None))


#: Of a query that joins `first_clicks` to `messages` from outside: the state of a message, and the one before CLICKTHRU.
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
    Column("domain_id", Integer, nullable=False),  # 0: the installation's BASE_URL
    Column("position", SmallInteger, nullable=False),
    Column("flags", SmallInteger, nullable=False),  # model.LinkFlag
    Column("url", Text, nullable=False),
    Column("location", Text),  # the bytes of the Location header; NULL when they are those of `url`
    Column("label", Text),
    Column("fallback_url", Text),
    Column("expires_at", Instant, nullable=False, index=True),
    Column("disabled_at", Instant),
)

#: Hits that were not the first click of their message. Those that were are found by `first_clicks.hit_id`, and so cost no entry in
#: an index whose every insert would touch another page.
OTHER_HITS = "flags & 2 = 0"


def other_hits(name: str = "hits") -> TextClause:
    """The condition of the index `hits_by_link`, letter by letter, for the table of that name in a query."""
    return text(f"{name}.{OTHER_HITS}")


hits = Table(
    "hits",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("link_id", BigInteger, nullable=False),
    Column("at", Instant, nullable=False),
    Column("verdict", SmallInteger, nullable=False),
    Column("rule", Text, nullable=False),
    Column("flags", SmallInteger, nullable=False),  # model.HitFlag
    Column("address", Text, nullable=False),
    Column("user_agent", Text, nullable=False),
    # What it was judged as when it was recorded; NULL: as it is judged now (clicks/verdicts/reclassify.py).
    Column("first_verdict", SmallInteger),
    Column("first_rule", Text),
    Index("hits_by_link", "link_id", sqlite_where=text(OTHER_HITS), postgresql_where=text(OTHER_HITS)),
)

#: Events but the first clicks of messages, which carry the id of their hit: `first_clicks` knows it, and they cost no entry in an
#: index whose every insert would touch another page. `events_of` finds them all.
OTHER_EVENTS = "coalesce(hit_id, 0) <> id"

#: What stands in the place of facts that could not be made. No delivery points to such an event.
QUARANTINED = {"set_aside": True}

#: The event log. `topics` are the bits of model.Topic that the row is told as, `data` what only the maker of the event knew,
#: `facts` the snapshot that bodies are rendered from, made at fan-out when somebody wants the event.
events = Table(
    "events",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("topics", SmallInteger, nullable=False),
    Column("at", Instant, nullable=False),
    Column("message_id", BigInteger),
    Column("link_id", BigInteger),
    Column("hit_id", BigInteger),
    Column("conversion_id", BigInteger),
    Column("data", Json),
    Column("facts", Json),
    Column("fanned_out", Boolean, nullable=False, server_default=false()),
    Index("events_pending", "id", sqlite_where=text("fanned_out = 0"), postgresql_where=text("NOT fanned_out")),
    Index("events_by_message", "message_id", sqlite_where=text(OTHER_EVENTS), postgresql_where=text(OTHER_EVENTS)),
)


def is_pending_click() -> ColumnElement[bool]:
    """Events of messages' first clicks, as the recorder leaves them: the fan-out finds out what the message was before, and counts
    how soon the click came."""
    pending = or_(events.c.fanned_out == false(), events.c.facts == QUARANTINED)
    return and_(events.c.hit_id == events.c.id, events.c.data.is_(None), pending)


_others = events.alias("others")
_other = text("coalesce(others.hit_id, 0) <> others.id")


def events_of(wanted: Sequence[int] | BindParameter[int]) -> ColumnElement[bool]:
    """The condition for the events of these messages: row ids, or a parameter for them."""
    other = (_other, _others.c.message_id.in_(wanted))
    return events.c.id.in_(
        union_all(
            select(first_clicks.c.hit_id).where(first_clicks.c.id.in_(wanted)),
            select(_others.c.id).where(*other),
            # The event of a first click that was taken back: what took it back points to the same hit.
            select(_others.c.hit_id).where(*other),
        )
    )


def is_event_of_message() -> tuple[ColumnElement[bool], ...]:
    """The same for the message of an outer query: an event is its if one of these holds. Each finds them by an index."""
    other = and_(_other, _others.c.message_id == messages.c.id)
    return (
        and_(first_clicks.c.id == messages.c.id, events.c.id == first_clicks.c.hit_id),
        and_(other, events.c.id == _others.c.id),
        and_(other, events.c.id == _others.c.hit_id),
    )


#: One row per event, topic and place it goes to. `lane` is what slots are counted by: "t<tracker>" or "c<host>" for callbacks.
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("event_id", BigInteger, nullable=False, index=True),
    Column("topic", SmallInteger, nullable=False),
    Column("application_id", Integer, nullable=False),
    Column("tracker_id", Integer),  # NULL: a message's own callback
    Column("callback_url", Text),
    Column("lane", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),  # model.DeliveryStatus
    Column("attempt", SmallInteger, nullable=False),  # how many were begun
    Column("base_attempt", SmallInteger, nullable=False, server_default="0"),  # those before the last replay
    Column("queue", SmallInteger, nullable=False, server_default="0"),  # 0: first attempts; 1: everything after
    # When it is due. While an attempt is under way, this is the end of its lease: a lost one is due again by itself.
    Column("next_at", Instant, nullable=False),
    Column("lease_until", Instant),
    Column("created_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("last_status", SmallInteger),
    Column("last_error", Text),
    # A crash between fan-out's two halves cannot happen (one transaction); this says so to whoever changes it.
    Index(
        "deliveries_once",
        "event_id",
        "topic",
        "tracker_id",
        unique=True,
        sqlite_where=text("tracker_id IS NOT NULL"),
        postgresql_where=text("tracker_id IS NOT NULL"),
    ),
    Index("deliveries_due", "lane", "queue", "next_at", sqlite_where=text("status = 0"), postgresql_where=text("status = 0")),
    Index("deliveries_dead", "tracker_id", "id", sqlite_where=text("status = 2"), postgresql_where=text("status = 2")),
    Index("deliveries_by_tracker", "tracker_id", "id"),
    Index("deliveries_by_application", "application_id", "id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("delivery_id", BigInteger, nullable=False, index=True),
    Column("attempt", SmallInteger, nullable=False),
    Column("at", Instant, nullable=False),
    Column("milliseconds", Integer, nullable=False),
    Column("status", SmallInteger),
    Column("error", Text),
    Column("detail", Text),
    Column("answer", Text),  # the first KiB of what came back
)

conversions = Table(
    "conversions",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("message_id", BigInteger, nullable=False),
    Column("hit_id", BigInteger),
    Column("action", Text, nullable=False),
    Column("transaction_id", Text, nullable=False),  # "" when the tracker sent none
    Column("status", Text),
    Column("disposition", Text),
    Column("value", Money),
    Column("currency", Text),
    Column("at", Instant, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("metadata", Json),
    UniqueConstraint("message_id", "action", "transaction_id"),
    Index("conversions_by_application", "application_id", "id"),
)

#: What happened and is not yet folded into the counts: one small row per transaction, written in that transaction.
count_deltas = Table(
    "tallies",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("data", Json, nullable=False),  # report.counts.Tally
)

#: Counts per cohort and quarter of an hour (so that a day can be cut in any time zone).
counts = Table(
    "counts",
    metadata,
    Column("cohort_id", Integer, primary_key=True, autoincrement=False),
    Column("quarter", Integer, primary_key=True, autoincrement=False),  # quarters of an hour since 1970
    Column("metric", Text, primary_key=True),
    Column("amount", Money, nullable=False),
)

#: Infobip's conversion processes: `tracking` objects with the same type share one, and so do all messages without such an object
#: (then both are "").
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

#: Answers to whole requests that came with an Idempotency-Key.
idempotency = Table(
    "idempotency",
    metadata,
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    Column("content_hash", Text, nullable=False),
    Column("answer", Json, nullable=False),
    Column("created_at", Instant, nullable=False, index=True),
)
