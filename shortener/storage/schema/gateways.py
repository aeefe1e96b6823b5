"""The tables of gateways and of the messages that are handed on to them."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, Integer, SmallInteger, Table, Text, false

from shortener.storage.schema.base import RowId, metadata, partial_index
from shortener.storage.types import Instant, Json, Money

#: Gateways: the systems to which messages are handed on (shortener/gateways).
gateways = Table(
    "gateways",
    metadata,
    Column("id", Integer, primary_key=True),
    # The application id 0 means that every application may use the gateway. Operators can select it for any application.
    Column("application_id", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),  # The kind of the gateway: http, smpp or simulator.
    # The preset from which the gateway was created. "": the gateway was created without a preset.
    Column("preset", Text, nullable=False, server_default=""),
    # The settings of the gateway, as JSON. They depend on its kind. The JSON is encrypted, because settings contain credentials.
    Column("settings", Text, info={"encrypted": "settings"}),
    # The encrypted key in the path of the URL to which the gateway sends delivery reports.
    Column("report_key", Text, info={"encrypted": "report key"}),
    Column("report_key_hash", Text, nullable=False, unique=True),
    Column("enabled", Boolean, nullable=False),
    Column("disabled_reason", Text),
    Column("allow_private", Boolean, nullable=False, server_default=false()),
    Column("on_doubt", Text, nullable=False, server_default="resend"),  # The policy for doubtful messages: resend or hold.
    # In the columns from `max_attempts` to `schedule`, NULL means that the setting of the installation applies.
    Column("max_attempts", Integer),
    Column("timeout", Float),  # The time limit of one attempt in seconds.
    Column("concurrency", Integer),
    Column("schedule", Json),  # The delays between attempts in seconds.
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("removed_at", Instant),
    # The number of changes of the gateway. If it differs from the number in a cached copy, the copy is outdated.
    Column("revision", Integer, nullable=False, server_default="1"),
    # The columns from `failures_in_row` to `paced_until` describe the health and the rate of the gateway. They have the same
    # meaning as in the table `trackers`.
    Column("failures_in_row", Integer, nullable=False, server_default="0"),
    Column("open_until", Instant),
    Column("opened_at", Instant),
    Column("recovering_at", Instant),
    Column("last_success_at", Instant),
    Column("last_failure_at", Instant),
    Column("max_per_second", Float),
    Column("rate", Float),
    Column("rate_ceiling", Float),
    Column("rate_lowered_at", Instant),
    Column("paced_until", Instant),
    partial_index(
        "gateways_by_name",
        "application_id",
        "name",
        unique=True,
        where="removed_at IS NULL",
    ),
    # The id of a removed gateway must never be reused. Otherwise its messages would go to the new gateway.
    sqlite_autoincrement=True,
)

#: Messages that are handed on to a gateway. The row of a message has the same id as its row in `messages`.
sends = Table(
    "sends",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("application_id", Integer, nullable=False),
    Column("gateway_id", Integer, nullable=False),
    Column("status", SmallInteger, nullable=False),  # The value of model.SendStatus.
    # The text of the message. It becomes NULL when the gateway has accepted the message, or when the message is given up.
    Column("text", Text),
    Column("attempt", SmallInteger, nullable=False, server_default="0"),  # The number of attempts that were started.
    # The number of started attempts that do not count towards the maximum: those before an operator sent the message again, those
    # with a local failure, and those with a response that asks the service to send more slowly.
    Column("base_attempt", SmallInteger, nullable=False, server_default="0"),
    # The part of the queue: 0 before the first attempt for the message, 1 before a retry.
    Column("queue", SmallInteger, nullable=False, server_default="0"),
    # The time of the next attempt to hand the message on. While an attempt runs, it is the end of the lease.
    Column("next_at", Instant, nullable=False),
    Column("lease_until", Instant),
    # Whether the gateway may have accepted the message in an attempt whose response is missing or unclear.
    Column("doubtful", Boolean, nullable=False, server_default=false()),
    Column("cost", Money),  # The price of the message. NULL: the message has no price.
    # Whether the cost was refunded, because the message was not sent.
    Column("refunded", Boolean, nullable=False, server_default=false()),
    Column("created_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("gateway_message_id", Text),  # The id under which the gateway reports the delivery of the message.
    Column("last_status", Integer),  # The status of the last response: an HTTP status, or a command status of SMPP.
    Column("last_error", Text),
    # Whether the cost was deducted from the balance of the application. It is deducted only if the application is prepaid. NULL:
    # this is unknown, because a release before 0.4 queued the message. The cost then counts as deducted.
    Column("deducted", Boolean),
    partial_index("sends_due", "gateway_id", "queue", "next_at", where="status = 0"),
    partial_index(
        "sends_in_flight",
        "gateway_id",
        "lease_until",
        where="lease_until IS NOT NULL",
    ),
    partial_index("sends_held", "application_id", "id", where="status = 3"),
    # This index finds the oldest messages whose text is still stored. Ids grow with time.
    partial_index("sends_unfinished", "id", where="status IN (0, 3)"),
    partial_index(
        "sends_by_gateway_message_id",
        "gateway_id",
        "gateway_message_id",
        where="gateway_message_id IS NOT NULL",
    ),
)

#: The attempts to hand a message on to its gateway.
send_attempts = Table(
    "send_attempts",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("send_id", BigInteger, nullable=False, index=True),
    Column("attempt", SmallInteger, nullable=False),
    Column("at", Instant, nullable=False),
    Column("milliseconds", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("status", Integer),
    Column("detail", Text),
)
