"""The tables of applications, keys and domains, and of values that all processes of the installation share."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Integer, Table, Text, false

from shortener.storage.schema.base import metadata
from shortener.storage.types import Instant, Json

#: Named values that all processes of the installation share, such as the fingerprint of the secret and the progress of jobs.
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
    # Only the settings of the application that differ from their defaults. The others are not stored, so that a later release can
    # change a default.
    Column("settings", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("disabled_at", Instant),
    # The encrypted secret that signs requests to lt_callbackurl and conversion_url. NULL: these requests are not signed.
    Column("callback_secret", Text, info={"encrypted": "callback secret"}),
    Column("previous_callback_secret", Text, info={"encrypted": "previous callback secret"}),
    Column("previous_callback_secret_until", Instant),
    Column("gateway_id", Integer),  # The gateway that sends the messages of the application; NULL: no gateway.
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
    # The path that new links of the domain have before the code, such as "/ABCDEF" or "/{sender}".
    Column("path", Text, nullable=False, server_default=""),
    Column("previous_paths", Json),  # The paths that older links have before the code. These links still work.
    Column("home_url", Text),
    Column("assetlinks", Text),  # The content of /.well-known/assetlinks.json as JSON text.
    Column("apple_app_site_association", Text),  # The content of apple-app-site-association as JSON text.
    Column("is_default", Boolean, nullable=False, server_default=false()),
    Column("removed_at", Instant),  # A removed domain is not listed and gets no new links. Its existing links still work.
)

#: Blocked hosts: no short link redirects to them.
blocked_hosts = Table(
    "blocked_hosts",
    metadata,
    # A row with the application id 0 blocks the host for the links of all applications.
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    # The blocked host in lower case and punycode, without a port. "*.example.com" blocks every subdomain.
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
    Column("valid_until", Instant),  # The time at which a replaced token becomes invalid. NULL: this is the current token.
)

#: Tracker tokens and postback keys that expire soon, and for which an event `key_expiring` was already created.
expiry_notices = Table(
    "expiry_notices",
    metadata,
    Column("kind", Text, primary_key=True),  # The name of the table that contains the token or the key.
    Column("key_id", Integer, primary_key=True, autoincrement=False),
    Column("expires_at", Instant, nullable=False),
)

#: Postback keys: keys in the path of a URL, for networks that can store only a URL. A postback key permits nothing but reports of
#: conversions.
postback_keys = Table(
    "postback_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("application_id", Integer, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),  # The first characters of the key, which distinguish keys in a list.
    Column("created_at", Instant, nullable=False),
    Column("valid_until", Instant),  # The time at which the key becomes invalid after a rotation. NULL: the key was not rotated.
    Column("revoked_at", Instant),
)

#: The stored responses to rewrite requests with an Idempotency-Key. A repeated request gets the stored response.
idempotency = Table(
    "idempotency",
    metadata,
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    Column("content_hash", Text, nullable=False),
    Column("answer", Json, nullable=False),
    Column("created_at", Instant, nullable=False, index=True),
)

#: The stored responses to requests with an Idempotency-Key (accounts/stored_responses.py), except those of the previous table.
stored_responses = Table(
    "stored_responses",
    metadata,
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    Column("operation", Text, primary_key=True),  # The method and the path of the request.
    Column("key", Text, primary_key=True),
    Column("content_hash", Text, nullable=False),
    Column("status", Integer),  # The HTTP status of the response. NULL: the service is still performing the request.
    Column("body", Text),  # The encrypted body of the response, which may contain new credentials.
    Column("created_at", Instant, nullable=False, index=True),
)

#: The leases of node numbers, with PostgreSQL (storage/node_lease.py). Each process that serves has one.
node_leases = Table(
    "node_leases",
    metadata,
    Column("node", Integer, primary_key=True, autoincrement=False),
    Column("owner", Text, nullable=False),  # A random text that identifies the process that has the lease.
    # The time at which the lease of the node number ends, in milliseconds since 1970 on the clock of the database.
    Column("until_ms", BigInteger, nullable=False),
)
