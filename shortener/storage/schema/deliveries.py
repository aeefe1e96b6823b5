"""The tables of trackers and of the deliveries of events to them."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, SmallInteger, Table, Text, false

from shortener.storage.schema.base import RowId, metadata, partial_index
from shortener.storage.types import Instant, Json

#: Trackers: endpoints that receive events. `role` is "tracker", or "conversion_url" for the URL in the field `conversion_url` of
#: an application.
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
    Column("topics", SmallInteger, nullable=False),  # The events that the tracker receives: the bits of model.Topic.
    Column("method", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("fields", Json),
    # The HTTP headers of requests to the tracker, as JSON. The JSON is encrypted, because headers contain credentials.
    Column("headers", Text, info={"encrypted": "headers"}),
    Column("secret", Text, info={"encrypted": "signing secret"}),  # The encrypted secret that signs deliveries.
    Column("previous_secret", Text, info={"encrypted": "previous signing secret"}),
    Column("previous_secret_until", Instant),
    Column("success", Json, nullable=False),
    # In the columns from `max_attempts` to `schedule`, NULL means that the setting of the installation applies.
    Column("max_attempts", Integer),
    Column("timeout", Json),  # The time limit of one delivery attempt in seconds.
    Column("concurrency", Integer),
    Column("schedule", Json),  # The delays between delivery attempts in seconds.
    Column("with_suspected", Boolean, nullable=False, server_default=false()),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    # The number of changes of the tracker. If it differs from the number in a cached copy, the copy is outdated.
    Column("revision", Integer, nullable=False, server_default="1"),
    # The columns from `failures_in_row` to `last_failure_at` describe the health of the tracker (delivery/health.py).
    Column("failures_in_row", Integer, nullable=False, server_default="0"),
    Column("open_until", Instant),  # The circuit breaker is open until this time. Then one delivery is sent as a probe.
    Column("opened_at", Instant),  # The time when the circuit breaker opened.
    # After a tracker has recovered, its backlog is sent at a limited rate. The next delivery of the backlog may be sent at the
    # time in `recovering_at`.
    Column("recovering_at", Instant),
    Column("last_success_at", Instant),
    Column("last_failure_at", Instant),
    # A client certificate: the PEM text of a certificate chain and its key, encrypted.
    Column("client_certificate", Text, info={"encrypted": "client certificate"}),
    # The columns from `max_per_second` to `paced_until` limit the deliveries per second (delivery/pace.py). The customer sets
    # `max_per_second`. The service computes the columns whose names begin with `rate` from the tracker's responses.
    Column("max_per_second", Float),
    Column("rate", Float),
    Column("rate_ceiling", Float),
    Column("rate_lowered_at", Instant),
    Column("paced_until", Instant),  # The earliest time at which the next delivery does not exceed the rate.
    # The filter for conversions (delivery/conversion_filter.py): two lists of names. NULL: there is no such list.
    Column("conversion_actions", Json),
    Column("conversion_dispositions", Json),
    # The id of a deleted tracker must never be reused. Otherwise its deliveries would go to the new tracker.
    sqlite_autoincrement=True,
)

#: Deliveries: one row for each event, topic and receiver. `lane` is the name of the queue of a receiver
#: (delivery/queue_names.py). `queue` divides this queue into two parts: first attempts and retries.
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("event_id", BigInteger, nullable=False, index=True),
    Column("topic", SmallInteger, nullable=False),
    Column("application_id", Integer, nullable=False),
    # The tracker that receives the delivery. NULL: the delivery goes to the callback URL of the message.
    Column("tracker_id", Integer),
    Column("callback_url", Text),
    # Sort the names of queues by bytes, as Python does (queue_walk.py). SQLite always sorts by bytes.
    Column("lane", Text().with_variant(Text(collation="C"), "postgresql"), nullable=False),
    Column("status", SmallInteger, nullable=False),  # The value of model.DeliveryStatus.
    Column("attempt", SmallInteger, nullable=False),  # The number of attempts that were started.
    # The number of started attempts that do not count towards the maximum: those before the last replay, and those with a 429
    # response.
    Column("base_attempt", SmallInteger, nullable=False, server_default="0"),
    # The part of the queue: 0 before the first attempt of the delivery, 1 before a retry.
    Column("queue", SmallInteger, nullable=False, server_default="0"),
    # The time of the next attempt of the delivery. While an attempt runs, it is the end of the lease. If the attempt is lost, the
    # delivery is attempted again at this time.
    Column("next_at", Instant, nullable=False),
    Column("lease_until", Instant),
    # The time when `next_at` was set (delivery/clock_steps.py). NULL: it was set when the delivery was created.
    Column("scheduled_at", Instant),
    # The time at which the present series of local failures began. NULL: there is no such series. A local failure is a failure of
    # the machine that delivers, not of the tracker.
    Column("held_since", Instant),
    Column("created_at", Instant, nullable=False),
    Column("restarted_at", Instant),  # The time of the last replay of the delivery.
    Column("finished_at", Instant),
    Column("last_status", SmallInteger),
    Column("last_error", Text),
    # The background replay that last replayed the delivery. NULL: the delivery was never replayed, or its last replay was not a
    # background replay.
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

#: Background replays of the dead deliveries of a tracker. A process performs them in batches (delivery/replays.py). They contain
#: the deliveries that were created between `since` and `until`.
replays = Table(
    "replays",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("tracker_id", Integer, nullable=False),
    Column("since", Instant),
    Column("until", Instant),
    Column("state", Text, nullable=False),  # The state of the replay: running, done or stopped.
    Column("stop_reason", Text),  # If the replay is stopped: the reason, a value of replays.StopReason.
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

#: The processes that deliver. Each regularly stores the time at which it was still running (delivery/processes.py).
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
