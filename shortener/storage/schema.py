"""The tables of the database, for SQLite and PostgreSQL.

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

#: Named values of the installation: the fingerprint of the secret, the version of the directory of accounts, the progress of jobs.
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
    # Contains the values of accounts.ApplicationSettings that differ from the defaults. A later version can change a default.
    Column("settings", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("disabled_at", Instant),
    # The encrypted secret that signs requests to lt_callbackurl and conversion_url. NULL: these requests are not signed.
    Column("callback_secret", Text),
    Column("previous_callback_secret", Text),
    Column("previous_callback_secret_until", Instant),
)

domains = Table(
    "domains",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("host", Text, nullable=False, unique=True),  # The host of the domain in lower case, with the port if it has one.
    Column("base_url", Text, nullable=False),  # Scheme, host and port of the domain, without the path.
    Column("fallback_url", Text),
    Column("created_at", Instant, nullable=False),
    Column("disabled_at", Instant),
    # The path before the code of new links, such as "/ABCDEF" or "/{sender}".
    Column("path", Text, nullable=False, server_default=""),
    Column("previous_paths", Json),  # The paths before the codes of older links, which still work.
    Column("home_url", Text),
    Column("assetlinks", Text),  # The content of /.well-known/assetlinks.json as JSON text.
    Column("apple_app_site_association", Text),  # The content of apple-app-site-association as JSON text.
    Column("is_default", Boolean, nullable=False, server_default=false()),
    Column("removed_at", Instant),  # A removed domain is not listed and gets no new links. Its existing links still work.
)

#: Hosts to which no short link redirects.
blocked_hosts = Table(
    "blocked_hosts",
    metadata,
    # The id 0 blocks the host for the links of all applications.
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    # The host in lower case and punycode, without a port. "*.example.com" blocks every subdomain.
    Column("host", Text, primary_key=True),
    Column("created_at", Instant, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),  # The first characters of the key, which distinguish keys in a list.
    Column("permissions", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("revoked_at", Instant),
    Column("rate_limit", Integer),  # The maximum number of requests per minute with this key; NULL: no limit.
)

tracker_tokens = Table(
    "tracker_tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("hash", Text, nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
    Column("valid_until", Instant),  # The end of the validity of a replaced token; NULL: the current token.
)

#: Tracker tokens and postback keys whose expiry was announced by an event `key_expiring`.
expiry_notices = Table(
    "expiry_notices",
    metadata,
    Column("kind", Text, primary_key=True),  # The name of the table that contains the key.
    Column("key_id", Integer, primary_key=True, autoincrement=False),
    Column("expires_at", Instant, nullable=False),
)

#: Postback keys: keys in the path of a URL, for networks that can store only a URL. They allow reports of conversions only.
postback_keys = Table(
    "postback_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),  # The first characters of the key, which distinguish keys in a list.
    Column("created_at", Instant, nullable=False),
    Column("valid_until", Instant),  # The end of the validity, which is set when the key is rotated; NULL: no end.
    Column("revoked_at", Instant),
)

#: Endpoints that receive events. `role` is "tracker", or "conversion_url" for the endpoint that the API fields of an application
#: define.
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
    Column("topics", SmallInteger, nullable=False),  # The bits of model.Topic that the tracker subscribes to.
    Column("method", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("fields", Json),
    Column("headers", Text),  # The HTTP headers of requests to the tracker, as encrypted JSON, because headers contain credentials.
    Column("secret", Text),  # The encrypted secret that signs deliveries.
    Column("previous_secret", Text),  # The encrypted previous secret that signs deliveries.
    Column("previous_secret_until", Instant),
    Column("success", Json, nullable=False),
    # NULL in the next four columns means the value of the setting of the installation.
    Column("max_attempts", Integer),
    Column("timeout", Json),  # The time limit of one delivery attempt in seconds.
    Column("concurrency", Integer),
    Column("schedule", Json),  # The delays between delivery attempts in seconds.
    Column("with_suspected", Boolean, nullable=False, server_default=false()),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    # The number of changes of the tracker, by which a process detects a stale copy.
    Column("revision", Integer, nullable=False, server_default="1"),
    # The next columns are the health of the tracker (delivery/health.py). The dispatcher writes them when they change.
    Column("failures_in_row", Integer, nullable=False, server_default="0"),
    Column("open_until", Instant),  # The circuit breaker is open until this time; one probe delivery follows.
    Column("opened_at", Instant),  # The time when the circuit breaker opened.
    # The backlog of a tracker that has recovered is released at a limited rate. This is the time up to which it is released.
    Column("recovering_at", Instant),
    Column("last_success_at", Instant),
    Column("last_failure_at", Instant),
    Column("client_certificate", Text),  # A client certificate: the encrypted PEM text of a certificate chain and its key.
    # The rate of deliveries per second (delivery/pace.py). The customer sets `max_per_second`; responses with status 429 set the
    # others.
    Column("max_per_second", Float),
    Column("rate", Float),
    Column("rate_ceiling", Float),
    Column("rate_lowered_at", Instant),
    Column("paced_until", Instant),  # The allowed deliveries are used up until this time.
    # The id of a deleted tracker must never be reused, because its deliveries would go to the new tracker.
    sqlite_autoincrement=True,
)

#: The groups of the statistics: one row for each application, campaign, source, recipient country and conversion process.
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
    Column("content_hash", Text, nullable=False),  # A hash by which a repeated message_id is compared with the first request.
    Column("to_address", Text, nullable=False),
    Column("from_address", Text, nullable=False, server_default=""),
    Column("sender_id_id", Text, nullable=False, server_default=""),
    Column("sender_id_alias", Text, nullable=False, server_default=""),
    # The reported state of the message. A click adds a row to `first_clicks` and does not change this column (see `current_state`).
    Column("state", SmallInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("sent_at", Instant),
    Column("delivered_at", Instant),
    Column("read_at", Instant),
    Column("failed_at", Instant),
    Column("encoding", Text, nullable=False),
    Column("segments", SmallInteger, nullable=False),
    Column("fragments_count", SmallInteger),  # The number of billed segments, if a delivery report contained it.
    Column("mt_price", Money),
    Column("report_status", Text),
    Column("reason_code", Text),
    Column("reason_description", Text),
    Column("telecom_message_id", Text),
    Column("callback_url", Text),  # The callback URL of Xoxzo's field lt_callbackurl.
    Column("metadata", Json),
    Column("link_set_id", Integer),  # The set of the message's links; NULL: the message has no links, or is older than this column.
    UniqueConstraint("application_id", "message_id"),
    Index("messages_by_application", "application_id", "id"),
    Index("messages_by_recipient", "to_address", "id"),
    Index("messages_by_cohort", "cohort_id", "id"),  # This index lists the messages of a campaign, newest first.
)

#: Messages with hits before they were reported as sent (clicks/verdicts/early_hits.py).
early_hits = Table(
    "early_hits",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),  # The row id of the message.
    Column("at", Instant, nullable=False),  # The time of the first hit before the message was reported as sent.
    Column(
        "is_due", Boolean, nullable=False, server_default=false()
    ),  # Whether a report about the message has arrived since the hit.
    Index("early_hits_by_at", "at"),
    Index("early_hits_due", "id", sqlite_where=text("is_due"), postgresql_where=text("is_due")),
)

#: The clicks of messages that were clicked. They are not columns of `messages`, whose rows are ten times as large: clicks come in
#: no order, so each would read and write another page of `messages` (docs/decisions/0013).
first_clicks = Table(
    "first_clicks",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),  # The row id of the message.
    # Both columns are NULL if the first click was retracted while a click on another link remains, or if the row is only the lock
    # of a transaction (outbox/first_clicks.py).
    Column("at", Instant),
    Column("hit_id", BigInteger),  # The row id of the hit that is the first click of the message.
    Column("links", Integer, nullable=False),  # Bit n is set if the link at position n was clicked.
)


def is_clicked() -> ColumnElement[bool]:
    """Return the SQL condition that a message of the query was clicked."""
    return exists().where(first_clicks.c.id == messages.c.id, first_clicks.c.at.is_not(None))


#: The state of a message, and its state before CLICKTHRU, in a query with an outer join of `messages` and `first_clicks`.
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
    Column("domain_id", Integer, nullable=False),  # The domain of the link; 0: BASE_URL.
    Column("position", SmallInteger, nullable=False),
    Column("flags", SmallInteger, nullable=False),  # The bits of model.LinkFlag.
    Column("url", Text, nullable=False),
    Column("location", Text),  # The destination as the value of the Location header; NULL if it is the same as `url`.
    Column("label", Text),
    Column("fallback_url", Text),
    Column("expires_at", Instant, nullable=False, index=True),
    Column("disabled_at", Instant),
    Column("clicks_numbered", Integer),  # The highest click number in an event of this link (delivery/fanout.py).
    Column("path", Text),  # The path before the code, such as "/ABCDEF"; NULL if the code is at the root of the host.
    Column("link_set_id", Integer),  # The link set that contains only this link; NULL: the link is older than this column.
)

#: The changes of links after their message was sent. `changes` has [old, new] by the name of the field.
link_changes = Table(
    "link_changes",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("link_id", BigInteger, nullable=False, index=True),
    Column("application_id", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    Column("actor", Text, nullable=False),  # Who changed the link, such as "key 12" or "command line".
    Column("update_id", BigInteger),  # The row id of the update of many links that this change is part of.
    Column("changes", Json, nullable=False),
)

#: Updates of many links, which any process performs in batches (clicks/link_updates.py).
link_updates = Table(
    "link_updates",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False, index=True),
    Column("state", Text, nullable=False),  # The state of the update: counting, running, done or stopped.
    Column("actor", Text, nullable=False),
    Column("filter", Json, nullable=False),
    Column("changes", Json, nullable=False),
    Column("total", BigInteger),  # The number of links to update; NULL while the links are counted.
    Column("counted", BigInteger, nullable=False, server_default="0"),
    Column("done", BigInteger, nullable=False, server_default="0"),
    Column("changed", BigInteger, nullable=False, server_default="0"),
    # The progress of the update: it has processed the index range of this number up to `cursor`, up to `last_message_id`.
    Column("last_message_id", BigInteger, nullable=False),
    Column("range_index", Integer, nullable=False, server_default="0"),
    Column("cursor", BigInteger, nullable=False, server_default="0"),
    Column("lease_until", Instant),
    Column("owner", Text),  # The process that performs the update.
    Column("created_at", Instant, nullable=False),
    Column("finished_at", Instant),
)

#: The condition for hits that are not the first click of their message. `first_clicks.hit_id` finds the others, so they need no
#: entry in an index in which every insert would write another page.
OTHER_HITS = "flags & 2 = 0"


def other_hits(name: str = "hits") -> TextClause:
    """Return the SQL condition of the index `hits_by_link` for a table name. SQLite uses the index only for exactly this text."""
    return text(f"{name}.{OTHER_HITS}")


hits = Table(
    "hits",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("link_id", BigInteger, nullable=False),
    Column("at", Instant, nullable=False),
    Column("verdict", SmallInteger, nullable=False),
    Column("rule", Text, nullable=False),
    Column("flags", SmallInteger, nullable=False),  # The bits of model.HitFlag.
    Column("address", Text, nullable=False),
    Column("user_agent", Text, nullable=False),
    # The verdict at the time of recording; NULL if the verdict has not changed since (clicks/verdicts/reclassify.py).
    Column("first_verdict", SmallInteger),
    Column("first_rule", Text),
    Index("hits_by_link", "link_id", sqlite_where=text(OTHER_HITS), postgresql_where=text(OTHER_HITS)),
)

#: Dead letters: hits that can never be stored (clicks/dead_letters.py).
hits_dead_letter = Table(
    "hits_dead_letter",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hit", Text, nullable=False),  # The hit as JSON, or the text of a spool entry that is not a hit.
    Column("code", Text, index=True),  # The code of the link; NULL if the spool entry is not a hit.
    Column("reason", Text, nullable=False),
    Column("at", Instant, nullable=False, index=True),  # The time when the hit became a dead letter.
)

#: The condition for events that are not the first click of a message. The event of a first click has the id of its hit, so
#: `first_clicks` finds it and it needs no entry in an index in which every insert would write another page. `events_of` finds all.
OTHER_EVENTS = "coalesce(hit_id, 0) <> id"

#: This value of `facts` marks a quarantined event: the fan-out could not build its facts. Such an event has no deliveries.
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
    """Return the SQL condition for first-click events that the fan-out has not processed or has quarantined.

    For these, the fan-out determines the previous state of the message and counts the time to click."""
    pending = or_(events.c.fanned_out == false(), events.c.facts == QUARANTINED)
    return and_(events.c.hit_id == events.c.id, events.c.data.is_(None), pending)


_others = events.alias("others")
_other = text("coalesce(others.hit_id, 0) <> others.id")


def events_of(wanted: Sequence[int] | BindParameter[int]) -> ColumnElement[bool]:
    """Return the SQL condition for the events of these messages. `wanted` are row ids of messages, or a parameter for them."""
    other = (_other, _others.c.message_id.in_(wanted))
    return events.c.id.in_(
        union_all(
            select(first_clicks.c.hit_id).where(first_clicks.c.id.in_(wanted)),
            select(_others.c.id).where(*other),
            # The event of a retracted first click has the id of its hit, which the event of the retraction contains in `hit_id`.
            select(_others.c.hit_id).where(*other),
        )
    )


def is_event_of_message() -> tuple[ColumnElement[bool], ...]:
    """Return SQL conditions for the events of the message of an outer query.

    Each event fulfils at least one condition. Each condition uses an index."""
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
    Column("tracker_id", Integer),  # The tracker that receives the delivery; NULL: the callback URL of the message.
    Column("callback_url", Text),
    Column("lane", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),  # The value of model.DeliveryStatus.
    Column("attempt", SmallInteger, nullable=False),  # The number of attempts that were started.
    # The number of attempts that do not count towards the maximum: those before the last replay, and 429 responses.
    Column("base_attempt", SmallInteger, nullable=False, server_default="0"),
    # The queue within the tracker. 0: deliveries at their first attempt; 1: all other deliveries.
    Column("queue", SmallInteger, nullable=False, server_default="0"),
    # The time of the next attempt. During an attempt it is the end of the lease, after which a lost attempt is repeated.
    Column("next_at", Instant, nullable=False),
    Column("lease_until", Instant),
    # The time when `next_at` was set; NULL: when the delivery was created (delivery/clock_steps.py).
    Column("scheduled_at", Instant),
    Column("held_since", Instant),  # The time since when only failures of this host (not of the tracker) delay the delivery.
    Column("created_at", Instant, nullable=False),
    Column("restarted_at", Instant),  # The time of the last replay of the delivery.
    Column("finished_at", Instant),
    Column("last_status", SmallInteger),
    Column("last_error", Text),
    # The fan-out of an event is one transaction, so it cannot create a delivery twice. This index enforces it.
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

#: The processes that deliver, with the time when each last reported itself as running (delivery/processes.py).
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
    Column("answer", Text),  # The first KiB of the response body.
)

conversions = Table(
    "conversions",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("message_id", BigInteger, nullable=False),
    Column("hit_id", BigInteger),
    Column("action", Text, nullable=False),
    Column("transaction_id", Text, nullable=False),  # The transaction id of the conversion; "" if the tracker sent none.
    Column("status", Text),
    Column("disposition", Text),  # The disposition of the conversion: positive, negative or NULL.
    Column("value", Money),
    Column("currency", Text),
    Column("at", Instant, nullable=False),  # The reported time of the first revision. The conversion is counted at this time.
    Column("received_at", Instant, nullable=False),
    Column("metadata", Json),
    # The number of the latest revision, whose values this row contains.
    Column("revision", Integer, nullable=False, server_default="1"),
    Column("updated_at", Instant),  # The time when the latest revision was received; NULL if there is only one revision.
    Column("latest_at", Instant),  # The reported time of the latest revision; NULL if there is only one revision.
    # The next columns have the action and the transaction id as they were reported, if they differ from the case-folded values in
    # `action` and `transaction_id`, which identify the conversion.
    Column("action_text", Text),
    Column("transaction_text", Text),
    Column("warnings", Json),  # A list of warnings as texts.
    # The category and the action under which the conversion is counted, such as "positive:sale". NULL: an older version, which did
    # not count by action, wrote the row.
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

#: The conversion actions that are counted separately. Their number is limited for each application.
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
    Column("endpoint", Text, nullable=False),  # The method and the path of the request, without a key.
    Column("reason", Text, nullable=False),  # The name of an ErrorCode.
    Column("description", Text, nullable=False),
    Column("details", Json, nullable=False),
    Column("message_id", Text),  # The message id as it was reported, by which an erasure finds the row.
    Column("parameters", Json, nullable=False),
    Index("refused_conversions_by_application", "application_id", "id"),
)

#: Count deltas that are not yet folded into `counts`: one row for each transaction, inserted in that transaction.
count_deltas = Table(
    "tallies",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("data", Json, nullable=False),  # The result of outbox.count_deltas.CountDelta.data.
    Column("origins", Json),  # The result of outbox.count_deltas.CountDelta.origins; NULL: an older version wrote the row.
)

#: This index contains the counts that are not rolled up yet. Only an older version leaves such counts.
NOT_ROLLED_UP = "rolled_up IS NULL OR rolled_up <> amount"

#: Counts for each cohort, metric and time slot of 15 minutes, so that a day in any time zone is a number of slots.
counts = Table(
    "counts",
    metadata,
    Column("cohort_id", Integer, primary_key=True, autoincrement=False),
    Column("quarter", Integer, primary_key=True, autoincrement=False),  # The time slot in quarters of an hour since 1970.
    Column("metric", Text, primary_key=True),
    Column("amount", Money, nullable=False),
    Column("rolled_up", Money),  # The part of the amount that the table `rollups` contains.
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
    Column("hash", Text, nullable=False, unique=True),  # A hash of the application, the campaign and the links.
    Column("links", Json, nullable=False),  # The links of the set as JSON: [[destination, label or null], ...].
    Index("link_sets_by_campaign", "application_id", "campaign"),
)

#: The groups of the rolled-up counts. `kind`: see reporting/rollups.py; the columns that a kind does not use are "".
count_groups = Table(
    "count_groups",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # The id is a hash of the other columns.
    Column("application_id", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("campaign", Text, nullable=False),
    Column("country", Text, nullable=False),
    Column("name", Text, nullable=False),  # The destination or the label of the group.
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
    Column("data", Json, nullable=False),  # The amounts by metric: integers, and decimal strings for amounts of money.
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

#: The stored responses to requests with an Idempotency-Key.
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
    Column("owner", Text, nullable=False),  # A random text that identifies the process.
    # The end of the lease in milliseconds since 1970, on the clock of the database.
    Column("until_ms", BigInteger, nullable=False),
)
