"""The tables of trackers and of the deliveries of events to them."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, SmallInteger, Table, Text, false

from shortener.storage.schema.base import RowId, metadata, partial_index
from shortener.storage.types import Instant, Json

#: Endpoints that receive events. `role` is "tracker", or "conversion_url" for the URL in the field `conversion_url` of an
#: application.
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
    # The HTTP headers of requests to the tracker, as JSON. The JSON is encrypted, because headers contain credentials.
    Column("headers", Text, info={"encrypted": "headers"}),
    Column("secret", Text, info={"encrypted": "signing secret"}),  # The encrypted secret that signs deliveries.
    Column("previous_secret", Text, info={"encrypted": "previous signing secret"}),
    Column("previous_secret_until", Instant),
    Column("success", Json, nullable=False),
    # NULL in the columns from `max_attempts` to `schedule` means that the setting of the installation applies.
    Column("max_attempts", Integer),
    Column("timeout", Json),  # The time limit of one delivery attempt in seconds.
    Column("concurrency", Integer),
    Column("schedule", Json),  # The delays between delivery attempts in seconds.
    Column("with_suspected", Boolean, nullable=False, server_default=false()),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    # The number of changes of the tracker. A process compares it to detect that its cached copy is outdated.
    Column("revision", Integer, nullable=False, server_default="1"),
    # The columns from `failures_in_row` to `last_failure_at` are the health of the tracker (delivery/health.py).
    Column("failures_in_row", Integer, nullable=False, server_default="0"),
    Column("open_until", Instant),  # The circuit breaker is open until this time; one probe delivery follows.
    Column("opened_at", Instant),  # The time when the circuit breaker opened.
    # The backlog of a tracker that has recovered is sent at a limited rate. The next delivery of the backlog may be sent after the
    # time in `recovering_at`.
    Column("recovering_at", Instant),
    Column("last_success_at", Instant),
    Column("last_failure_at", Instant),
    # A client certificate: the encrypted PEM text of a certificate chain and its key.
    Column("client_certificate", Text, info={"encrypted": "client certificate"}),
    # The columns from `max_per_second` to `paced_until` limit the deliveries per second (delivery/pace.py). The customer sets
    # `max_per_second`; the service sets the other columns after responses with status 429.
    Column("max_per_second", Float),
    Column("rate", Float),
    Column("rate_ceiling", Float),
    Column("rate_lowered_at", Instant),
    Column("paced_until", Instant),  # The earliest time of the next delivery that does not exceed the rate.
    # The filter for conversions (delivery/conversion_filter.py): lists of names. NULL permits all conversions.
    Column("conversion_actions", Json),
    Column("conversion_dispositions", Json),
    # The id of a deleted tracker must never be reused, because its deliveries would go to the new tracker.
    sqlite_autoincrement=True,
)

#: Deliveries: one row for each event, topic and receiver. `lane` is the name of the queue of a receiver (delivery/queue_names.py).
#: `queue` is a part of that queue: first attempts or retries.
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("event_id", BigInteger, nullable=False, index=True),
    Column("topic", SmallInteger, nullable=False),
    Column("application_id", Integer, nullable=False),
    Column("tracker_id", Integer),  # The tracker that receives the delivery; NULL: the callback URL of the message.
    Column("callback_url", Text),
    # The names of queues are sorted by bytes, as in Python (queue_walk.py). SQLite always does this.
    Column("lane", Text().with_variant(Text(collation="C"), "postgresql"), nullable=False),
    Column("status", SmallInteger, nullable=False),  # The value of model.DeliveryStatus.
    Column("attempt", SmallInteger, nullable=False),  # The number of attempts that were started.
    # The number of attempts that do not count towards the maximum: the attempts before the last replay, and the attempts with a 429
    # response.
    Column("base_attempt", SmallInteger, nullable=False, server_default="0"),
    # The part of the queue: 0 if the delivery waits for its first attempt, 1 if it waits for a retry.
    Column("queue", SmallInteger, nullable=False, server_default="0"),
    # The time of the next attempt of the delivery. During an attempt, it is the end of the lease, after which a lost attempt is
    # repeated.
    Column("next_at", Instant, nullable=False),
    Column("lease_until", Instant),
    # The time when `next_at` was set; NULL: it was set when the delivery was created (delivery/clock_steps.py).
    Column("scheduled_at", Instant),
    # The time since which only local failures have delayed the delivery. Local failures are failures of the machine that delivers,
    # not of the tracker.
    Column("held_since", Instant),
    Column("created_at", Instant, nullable=False),
    Column("restarted_at", Instant),  # The time of the last replay of the delivery.
    Column("finished_at", Instant),
    Column("last_status", SmallInteger),
    Column("last_error", Text),
    # The background replay that performed the latest replay of the delivery. NULL: the latest replay was not a background replay,
    # or there was none.
    Column("replay_id", BigInteger),
    # This index ensures that an event has at most one delivery for each topic and tracker.
    partial_index(
        "deliveries_once",
        "event_id",
        "topic",
        "tracker_id",
        unique=True,
        where="tracker_id IS NOT NULL",
    ),
    partial_index("deliveries_due", "lane", "queue", "next_at", where="status = 0"),
    partial_index("deliveries_dead", "tracker_id", "id", where="status = 2"),
    Index("deliveries_by_tracker", "tracker_id", "id"),
    Index("deliveries_by_application", "application_id", "id"),
    partial_index(
        "deliveries_of_replay",
        "replay_id",
        "status",
        "id",
        where="replay_id IS NOT NULL",
    ),
)

#: Background replays of the dead deliveries of a tracker. Any process performs them in batches (delivery/replays.py). `since` and
#: `until` limit the time at which the deliveries were created.
replays = Table(
    "replays",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("tracker_id", Integer, nullable=False),
    Column("since", Instant),
    Column("until", Instant),
    Column("state", Text, nullable=False),  # The state of the replay: running, done or stopped.
    Column("stop_reason", Text),  # The value of replays.StopReason of a stopped replay.
    Column("started_by", Text, nullable=False),
    Column("stopped_by", Text),
    Column("total", BigInteger, nullable=False),  # The number of deliveries to replay, counted when the replay was started.
    Column("replayed", BigInteger, nullable=False, server_default="0"),
    Column("cursor", BigInteger, nullable=False, server_default="0"),  # The id of the last delivery that was processed.
    Column("created_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Index("replays_by_application", "application_id", "id"),
    # This index ensures that a tracker has at most one running replay.
    partial_index(
        "replays_running",
        "tracker_id",
        unique=True,
        where="state = 'running'",
    ),
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
