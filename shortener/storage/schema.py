"""The tables of the database, for both engines. The names are those of `model.py`.

Messages, links, hits, events, deliveries, attempts and conversions have ids from `ids.py`, which grow with time. Applications,
keys, trackers, domains and other configuration have small ids from the database.
Every change of this module requires a migration in `storage/migrations/`. A test compares the two.
"""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    Float,
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

#: The type of an id from `ids.py`. On SQLite, only a column declared INTEGER is the rowid. A primary key of any other type has an
#: additional index that every insert and every look-up must use.
RowId = BigInteger().with_variant(Integer(), "sqlite")

#: Values about the installation: the fingerprint of the secret, the version of the directory, the progress of jobs.
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
    # The values of accounts.ApplicationSettings that differ from the defaults. A later version can change a default.
    Column("settings", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("disabled_at", Instant),
    # Encrypted. It signs lt_callbackurl and conversion_url. NULL: these are not signed.
    Column("callback_secret", Text),
    Column("previous_callback_secret", Text),
    Column("previous_callback_secret_until", Instant),
)

domains = Table(
    "domains",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("host", Text, nullable=False, unique=True),  # lower case, with the port if it has one
    Column("base_url", Text, nullable=False),  # without the path
    Column("fallback_url", Text),
    Column("created_at", Instant, nullable=False),
    Column("disabled_at", Instant),
    Column("path", Text, nullable=False, server_default=""),  # before the code of new links: "/ABCDEF", "/{sender}"
    Column("previous_paths", Json),  # the paths of older links, which still work
    Column("home_url", Text),
    Column("assetlinks", Text),  # JSON, the content of /.well-known/assetlinks.json
    Column("apple_app_site_association", Text),  # JSON
    Column("is_default", Boolean, nullable=False, server_default=false()),
    Column("removed_at", Instant),  # no new links and not listed; the links that exist still work
)

#: Hosts to which no short link redirects.
blocked_hosts = Table(
    "blocked_hosts",
    metadata,
    Column("application_id", Integer, primary_key=True, autoincrement=False),  # 0: for the links of all applications
    Column("host", Text, primary_key=True),  # lower case, punycode, no port; "*.example.com": every subdomain
    Column("created_at", Instant, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),  # the first characters, to distinguish keys in a list
    Column("permissions", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("revoked_at", Instant),
    Column("rate_limit", Integer),  # requests per minute; NULL: no limit
)

tracker_tokens = Table(
    "tracker_tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("hash", Text, nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
    Column("valid_until", Instant),  # NULL: the current token
)

#: Tokens and keys whose expiry was announced by an event `key_expiring`.
expiry_notices = Table(
    "expiry_notices",
    metadata,
    Column("kind", Text, primary_key=True),  # the table of the key
    Column("key_id", Integer, primary_key=True, autoincrement=False),
    Column("expires_at", Instant, nullable=False),
)

#: Keys in the path of postback URLs, for networks that can store only a URL. They allow reports of conversions only.
postback_keys = Table(
    "postback_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),  # the first characters, to distinguish keys in a list
    Column("created_at", Instant, nullable=False),
    Column("valid_until", Instant),  # NULL: no end; set when the key is rotated
    Column("revoked_at", Instant),
)

#: Endpoints that receive events. `role` is "tracker", or "conversion_url" for the one that the fields of an application define.
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
    Column("headers", Text),  # encrypted JSON, because headers contain credentials
    Column("secret", Text),  # encrypted
    Column("previous_secret", Text),  # encrypted
    Column("previous_secret_until", Instant),
    Column("success", Json, nullable=False),
    # NULL in the next four columns: the value of the installation's setting.
    Column("max_attempts", Integer),
    Column("timeout", Json),  # seconds
    Column("concurrency", Integer),
    Column("schedule", Json),  # seconds between attempts
    Column("with_suspected", Boolean, nullable=False, server_default=false()),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("revision", Integer, nullable=False, server_default="1"),  # the number of changes; detects stale copies
    # The health of the tracker (delivery/health.py). The dispatcher writes it when it changes.
    Column("failures_in_row", Integer, nullable=False, server_default="0"),
    Column("open_until", Instant),  # the circuit breaker is open until then; one probe follows
    Column("opened_at", Instant),  # when the circuit breaker opened
    Column("recovering_at", Instant),  # the backlog is released at a limited rate, up to this time so far
    Column("last_success_at", Instant),
    Column("last_failure_at", Instant),
    Column("client_certificate", Text),  # encrypted: PEM of a certificate chain and its key
    # The rate of deliveries (delivery/pace.py), per second. The customer sets `max_per_second`; 429 responses set the others.
    Column("max_per_second", Float),
    Column("rate", Float),
    Column("rate_ceiling", Float),
    Column("rate_lowered_at", Instant),
    Column("paced_until", Instant),  # the rate is used up to this time
    # Never reuse the id of a deleted tracker: its deliveries would go to the new tracker.
    sqlite_autoincrement=True,
)

#: The groups of the statistics: one row for each application, campaign, source, recipient country and conversion process.
cohorts = Table(
    "cohorts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False),
    Column("campaign", Text, nullable=False),  # "" if the message has none
    Column("source", Text, nullable=False),
    Column("country", Text, nullable=False),  # ISO 3166, "" if unknown
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
    Column("content_hash", Text, nullable=False),  # to compare a repeated message_id with the first request
    Column("to_address", Text, nullable=False),
    Column("from_address", Text, nullable=False, server_default=""),
    Column("sender_id_id", Text, nullable=False, server_default=""),
    Column("sender_id_alias", Text, nullable=False, server_default=""),
    # The reported state. A click adds a row to `first_clicks` and does not change this column (see `current_state`).
    Column("state", SmallInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("sent_at", Instant),
    Column("delivered_at", Instant),
    Column("read_at", Instant),
    Column("failed_at", Instant),
    Column("encoding", Text, nullable=False),
    Column("segments", SmallInteger, nullable=False),
    Column("fragments_count", SmallInteger),  # the billed segments, if a delivery report contained them
    Column("mt_price", Money),
    Column("report_status", Text),
    Column("reason_code", Text),
    Column("reason_description", Text),
    Column("telecom_message_id", Text),
    Column("callback_url", Text),  # Xoxzo's lt_callbackurl
    Column("metadata", Json),
    Column("link_set_id", Integer),  # NULL: the message has no links, or is older than this column
    UniqueConstraint("application_id", "message_id"),
    Index("messages_by_application", "application_id", "id"),
    Index("messages_by_recipient", "to_address", "id"),
    Index("messages_by_cohort", "cohort_id", "id"),  # the messages of a campaign, newest first
)

#: Messages with hits before they were reported as sent (clicks/verdicts/early_hits.py).
early_hits = Table(
    "early_hits",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),  # the id of the message
    Column("at", Instant, nullable=False),  # the time of the first such hit
    Column("is_due", Boolean, nullable=False, server_default=false()),  # a report has arrived since
    Index("early_hits_by_at", "at"),
    Index("early_hits_due", "id", sqlite_where=text("is_due"), postgresql_where=text("is_due")),
)

#: The clicks of messages that were clicked. They are not columns of `messages`, whose rows are ten times as large: clicks come in
#: no order, so each would read and write another page of `messages` (docs/decisions/0013).
first_clicks = Table(
    "first_clicks",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),  # the id of the message
    # Both columns are NULL if the first click was retracted while a click on another link remains, or if the row is only the lock
    # of a transaction (outbox/first_clicks.py).
    Column("at", Instant),
    Column("hit_id", BigInteger),  # the first click of the message
    Column("links", Integer, nullable=False),  # bit n: the link at position n was clicked
)


def is_clicked() -> ColumnElement[bool]:
    """Return the condition that a message of the query was clicked."""
    return exists().where(first_clicks.c.id == messages.c.id, first_clicks.c.at.is_not(None))


#: For a query with an outer join of `messages` and `first_clicks`: the state of a message, and its state before CLICKTHRU.
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
    Column("domain_id", Integer, nullable=False),  # 0: BASE_URL
    Column("position", SmallInteger, nullable=False),
    Column("flags", SmallInteger, nullable=False),  # model.LinkFlag
    Column("url", Text, nullable=False),
    Column("location", Text),  # the value of the Location header; NULL if it is the same as `url`
    Column("label", Text),
    Column("fallback_url", Text),
    Column("expires_at", Instant, nullable=False, index=True),
    Column("disabled_at", Instant),
    Column("clicks_numbered", Integer),  # the highest click number that an event of this link has (delivery/fanout.py)
    Column("path", Text),  # the path before the code, such as "/ABCDEF"; NULL if the code is at the root of the host
    Column("link_set_id", Integer),  # the set that contains only this link; NULL: the link is older than this column
)

#: The changes of links after they were sent. `changes` has [old, new] by the name of the field.
link_changes = Table(
    "link_changes",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("link_id", BigInteger, nullable=False, index=True),
    Column("application_id", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    Column("actor", Text, nullable=False),  # "key 12", "command line"
    Column("update_id", BigInteger),  # the update of many links that it is part of
    Column("changes", Json, nullable=False),
)

#: Updates of many links, which any process performs in pieces (clicks/link_updates.py).
link_updates = Table(
    "link_updates",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False, index=True),
    Column("state", Text, nullable=False),  # counting, running, done, stopped
    Column("actor", Text, nullable=False),
    Column("filter", Json, nullable=False),
    Column("changes", Json, nullable=False),
    Column("total", BigInteger),  # NULL while the links are counted
    Column("counted", BigInteger, nullable=False, server_default="0"),
    Column("done", BigInteger, nullable=False, server_default="0"),
    Column("changed", BigInteger, nullable=False, server_default="0"),
    # The position: messages up to `last_message_id`, in the ranges of an index, behind `cursor` in the range of this number.
    Column("last_message_id", BigInteger, nullable=False),
    Column("range_index", Integer, nullable=False, server_default="0"),
    Column("cursor", BigInteger, nullable=False, server_default="0"),
    Column("lease_until", Instant),
    Column("owner", Text),  # the process that works on it
    Column("created_at", Instant, nullable=False),
    Column("finished_at", Instant),
)

#: The condition for hits that are not the first click of their message. `first_clicks.hit_id` finds the others, so they need no
#: entry in an index in which every insert would write another page.
OTHER_HITS = "flags & 2 = 0"


def other_hits(name: str = "hits") -> TextClause:
    """Return the condition of the index `hits_by_link` for a table name. It must have exactly the text of the index."""
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
    # The verdict when the hit was recorded; NULL if it has not changed since (clicks/verdicts/reclassify.py).
    Column("first_verdict", SmallInteger),
    Column("first_rule", Text),
    Index("hits_by_link", "link_id", sqlite_where=text(OTHER_HITS), postgresql_where=text(OTHER_HITS)),
)

#: Hits that can never be stored (clicks/dead_letters.py).
hits_dead_letter = Table(
    "hits_dead_letter",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hit", Text, nullable=False),  # JSON, or the text of an entry that is not a hit
    Column("code", Text, index=True),  # NULL if the entry is not a hit
    Column("reason", Text, nullable=False),
    Column("at", Instant, nullable=False, index=True),  # when it became a dead letter
)

#: The condition for events that are not the first click of a message. The event of a first click has the id of its hit, so
#: `first_clicks` finds it and it needs no entry in an index in which every insert would write another page. `events_of` finds all.
OTHER_EVENTS = "coalesce(hit_id, 0) <> id"

#: The facts of a quarantined event: the fan-out could not build its facts. Such an event has no deliveries.
QUARANTINED = {"set_aside": True}

#: The event log. `topics` has the bits of model.Topic under which the event is published. `data` has what only the creator of the
#: event knew. `facts` is the snapshot for the bodies of deliveries; the fan-out builds it if a tracker subscribes to the event.
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
    """Return the condition for first-click events that the fan-out has not processed or has quarantined.

    For these, the fan-out determines the previous state of the message and counts the time to click."""
    pending = or_(events.c.fanned_out == false(), events.c.facts == QUARANTINED)
    return and_(events.c.hit_id == events.c.id, events.c.data.is_(None), pending)


_others = events.alias("others")
_other = text("coalesce(others.hit_id, 0) <> others.id")


def events_of(wanted: Sequence[int] | BindParameter[int]) -> ColumnElement[bool]:
    """Return the condition for the events of these messages. `wanted` are row ids of messages, or a parameter for them."""
    other = (_other, _others.c.message_id.in_(wanted))
    return events.c.id.in_(
        union_all(
            select(first_clicks.c.hit_id).where(first_clicks.c.id.in_(wanted)),
            select(_others.c.id).where(*other),
            # The event of a retracted first click: the event of the retraction has the same hit.
            select(_others.c.hit_id).where(*other),
        )
    )


def is_event_of_message() -> tuple[ColumnElement[bool], ...]:
    """Return conditions of which one holds for each event of the message of an outer query. Each condition uses an index."""
    other = and_(_other, _others.c.message_id == messages.c.id)
    return (
        and_(first_clicks.c.id == messages.c.id, events.c.id == first_clicks.c.hit_id),
        and_(other, events.c.id == _others.c.id),
        and_(other, events.c.id == _others.c.hit_id),
    )


#: One row for each event, topic and receiver. `lane` is the queue that the slots are counted by: "t<tracker>", or
#: "c<application>/<host>" for callbacks of messages.
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("event_id", BigInteger, nullable=False, index=True),
    Column("topic", SmallInteger, nullable=False),
    Column("application_id", Integer, nullable=False),
    Column("tracker_id", Integer),  # NULL: the callback URL of the message
    Column("callback_url", Text),
    Column("lane", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),  # model.DeliveryStatus
    Column("attempt", SmallInteger, nullable=False),  # the number of attempts that were started
    # The number of attempts that do not count: those before the last replay, and 429 responses.
    Column("base_attempt", SmallInteger, nullable=False, server_default="0"),
    Column("queue", SmallInteger, nullable=False, server_default="0"),  # 0: first attempts; 1: all other attempts
    # The time of the next attempt. During an attempt it is the end of the lease, so a lost attempt is repeated then.
    Column("next_at", Instant, nullable=False),
    Column("lease_until", Instant),
    Column("scheduled_at", Instant),  # when `next_at` was set; NULL: when the delivery was created (delivery/clock_steps.py)
    Column("held_since", Instant),  # since when only failures of this host delay the delivery
    Column("created_at", Instant, nullable=False),
    Column("restarted_at", Instant),  # the last replay
    Column("finished_at", Instant),
    Column("last_status", SmallInteger),
    Column("last_error", Text),
    # The fan-out of an event is one transaction, so it cannot create a delivery twice. This index guarantees it.
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

#: The processes that deliver, with the time of their last sign of life (delivery/processes.py).
delivery_processes = Table(
    "delivery_processes",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("seen_at", Instant, nullable=False),
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
    Column("answer", Text),  # the first KiB of the response body
)

conversions = Table(
    "conversions",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("message_id", BigInteger, nullable=False),
    Column("hit_id", BigInteger),
    Column("action", Text, nullable=False),
    Column("transaction_id", Text, nullable=False),  # "" if the tracker sent none
    Column("status", Text),
    Column("disposition", Text),  # positive, negative, or NULL
    Column("value", Money),
    Column("currency", Text),
    Column("at", Instant, nullable=False),  # the reported time of the first revision; the conversion is counted at this time
    Column("received_at", Instant, nullable=False),
    Column("metadata", Json),
    Column("revision", Integer, nullable=False, server_default="1"),  # the number of the latest revision, which this row contains
    Column("updated_at", Instant),  # the time when the latest revision was received; NULL: it is the first
    Column("latest_at", Instant),  # the reported time of the latest revision; NULL: it is the first
    # `action` and `transaction_id` are case-folded, because they identify the conversion. These are as they were reported, if they
    # differ.
    Column("action_text", Text),
    Column("transaction_text", Text),
    Column("warnings", Json),  # list of texts
    # The category and the action under which the conversion is counted, "positive:sale". NULL: a release without such counts wrote
    # the row.
    Column("counted_as", Text),
    UniqueConstraint("message_id", "action", "transaction_id"),
    Index("conversions_by_application", "application_id", "id"),
)

#: The earlier revisions of conversions that changed. The row of a conversion is its latest revision.
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

#: The actions that have counts of their own. Their number is limited for each application.
conversion_actions = Table(
    "conversion_actions",
    metadata,
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    Column("action", Text, primary_key=True),
)

#: Reports of conversions that were rejected, with the reason. Parameters that may be credentials are removed.
refused_conversions = Table(
    "refused_conversions",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("endpoint", Text, nullable=False),  # method and path, without a key
    Column("reason", Text, nullable=False),  # name of an ErrorCode
    Column("description", Text, nullable=False),
    Column("details", Json, nullable=False),
    Column("message_id", Text),  # as it was reported; for erasure
    Column("parameters", Json, nullable=False),
    Index("refused_conversions_by_application", "application_id", "id"),
)

#: Count deltas that are not yet folded into `counts`: one row for each transaction, inserted in that transaction.
count_deltas = Table(
    "tallies",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("data", Json, nullable=False),  # outbox.count_deltas.CountDelta.data
    Column("origins", Json),  # outbox.count_deltas.CountDelta.origins; NULL: an older version wrote the row
)

#: Counts that the rolled-up counts do not contain yet. Only an older version leaves such rows.
NOT_ROLLED_UP = "rolled_up IS NULL OR rolled_up <> amount"

#: Counts for each cohort, metric and time slot of 15 minutes, so that a day in any time zone is a number of slots.
counts = Table(
    "counts",
    metadata,
    Column("cohort_id", Integer, primary_key=True, autoincrement=False),
    Column("quarter", Integer, primary_key=True, autoincrement=False),  # the time slot: quarters of an hour since 1970
    Column("metric", Text, primary_key=True),
    Column("amount", Money, nullable=False),
    Column("rolled_up", Money),  # the part of the amount that `rollups` contains
    Index(
        "counts_not_rolled_up",
        "quarter",
        "cohort_id",
        sqlite_where=text(NOT_ROLLED_UP),
        postgresql_where=text(NOT_ROLLED_UP),
    ),
)

#: Sets of links: the destination (host and path) and the label of each link of a message. Messages with the same links share one.
#: A campaign has at most 200 destinations and 200 labels; all others are "other".
link_sets = Table(
    "link_sets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False),
    Column("campaign", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),  # of application, campaign and links
    Column("links", Json, nullable=False),  # [[destination, label or null], ...]
    Index("link_sets_by_campaign", "application_id", "campaign"),
)

#: The groups of the rolled-up counts. `kind`: see reporting/rollups.py; the columns that a kind does not use are "".
count_groups = Table(
    "count_groups",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # a hash of the other columns
    Column("application_id", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("campaign", Text, nullable=False),
    Column("country", Text, nullable=False),
    Column("name", Text, nullable=False),  # the destination or the label
    Index("count_groups_by_kind", "application_id", "kind", "campaign"),
)

#: Rolled-up counts. `series`: the length of the periods and the time that counts (reporting/rollups.py). `period`: the number of
#: periods of this length since 1970.
rollups = Table(
    "rollups",
    metadata,
    Column("group_id", BigInteger, primary_key=True, autoincrement=False),
    Column("series", SmallInteger, primary_key=True, autoincrement=False),
    Column("period", Integer, primary_key=True, autoincrement=False),
    Column("data", Json, nullable=False),  # amounts by metric: integers, and decimal strings for money
    sqlite_with_rowid=False,
)

#: Conversion processes of the Infobip API. Messages whose `tracking` objects have the same track and type share one. Messages
#: without such an object share one in which both are "".
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

#: Responses to requests with an Idempotency-Key.
idempotency = Table(
    "idempotency",
    metadata,
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    Column("content_hash", Text, nullable=False),
    Column("answer", Json, nullable=False),
    Column("created_at", Instant, nullable=False, index=True),
)

#: Node numbers of the processes that serve, with PostgreSQL (storage/node_lease.py).
node_leases = Table(
    "node_leases",
    metadata,
    Column("node", Integer, primary_key=True, autoincrement=False),
    Column("owner", Text, nullable=False),  # a random text for each process
    Column("until_ms", BigInteger, nullable=False),  # ms since 1970 of the database's clock
)
