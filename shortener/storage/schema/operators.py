"""The tables of the portal: operators, their roles and sessions, and the audit log."""

# Tested by tests/storage/test_migrate.py

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Integer, Table, Text, false, true

from shortener.storage.schema.base import RowId, metadata
from shortener.storage.types import Instant, Json

#: People who may use the portal (portal/operators.py).
operators = Table(
    "operators",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    # The name of the operator in case-folded form, by which the operator is found.
    Column("name_key", Text, nullable=False, unique=True),
    Column("password_hash", Text),  # The Argon2 hash of the password. NULL: the operator has not accepted the invitation yet.
    Column("password_changed_at", Instant),
    # The encrypted secret of the second factor. NULL: there is no second factor. If the secret of the installation is lost, the
    # second factor cannot be checked. Then the password is removed too, because the password alone must not be sufficient to sign
    # in.
    Column("totp_secret", Text, info={"encrypted": "second factor", "clears": ("password_hash",)}),
    # The time step of the last accepted code of the second factor. Only codes of later time steps are accepted.
    Column("totp_step", BigInteger),
    Column("theme", Text, nullable=False, server_default="system"),
    Column("time_zone", Text),
    Column("shortcuts", Boolean, nullable=False, server_default=true()),  # Whether the keyboard shortcuts of the portal are on.
    Column("created_at", Instant, nullable=False),
    Column("disabled_at", Instant),
    Column("last_sign_in_at", Instant),
    sqlite_autoincrement=True,  # An id is never reused, because the audit log contains it.
)

#: The role of each operator in each application. The application id 0 means all applications.
operator_roles = Table(
    "operator_roles",
    metadata,
    Column("operator_id", Integer, primary_key=True, autoincrement=False),
    Column("application_id", Integer, primary_key=True, autoincrement=False),
    Column("role", Text, nullable=False),
)

#: Invitations: URLs at which an operator sets a password. Each can be used once.
operator_invitations = Table(
    "operator_invitations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("operator_id", Integer, nullable=False, index=True),
    Column("hash", Text, nullable=False, unique=True),
    Column("may_rename", Boolean, nullable=False, server_default=false()),  # Whether the invited operator may choose another name.
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("used_at", Instant),
)

#: Recovery codes. Each can be used once, in place of a code of the second factor.
operator_recovery_codes = Table(
    "operator_recovery_codes",
    metadata,
    Column("operator_id", Integer, primary_key=True, autoincrement=False),
    Column("hash", Text, primary_key=True),
    Column("used_at", Instant),
)

#: The sessions of operators in the portal. When an operator ends a session, its row is deleted. The row of an expired session is
#: deleted a day later.
operator_sessions = Table(
    "operator_sessions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("operator_id", Integer, nullable=False, index=True),
    Column("hash", Text, nullable=False, unique=True),  # A hash of the token in the cookie.
    Column(
        "needs_code", Boolean, nullable=False, server_default=false()
    ),  # Whether the session is incomplete: the password was correct, but the code of the second factor is still missing.
    Column("created_at", Instant, nullable=False),
    Column("seen_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False, index=True),
    Column("password_at", Instant, nullable=False),  # The time when the operator last entered the password.
    Column("network", Text, nullable=False),  # The IP network of the client: /24 (IPv4) or /48 (IPv6).
    Column("user_agent", Text, nullable=False),
    sqlite_autoincrement=True,  # An id is never reused, because the audit log contains it.
)

#: Counts of failed sign-ins by name and by network, which determine how long the next attempt to sign in must wait. Other rows
#: contain the networks from which a name has signed in (portal/sign_in_delays.py).
sign_in_failures = Table(
    "sign_in_failures",
    metadata,
    Column("key", Text, primary_key=True),  # The kind of the row, and a keyed hash of the name or the network.
    Column("failures", Integer, nullable=False),
    Column("first_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False, index=True),
)

#: The audit log: all changes, and the sign-ins, exports and revealed phone numbers in the portal. Rows are never changed. They
#: are deleted after their retention time.
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("at", Instant, nullable=False),
    # The id of the operator. NULL: the actor is not an operator of the portal, or the operator is unknown.
    Column("operator_id", Integer),
    Column("operator", Text, nullable=False),  # The name of the actor when the action was recorded.
    Column("session_id", Integer),
    Column("network", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("application_id", Integer),
    Column("object", Text, nullable=False),
    Column("before", Json),  # The changed values before and after the action, without secrets.
    Column("after", Json),
)
