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
    # The case-folded name of the operator. Operators are found by this name.
    Column("name_key", Text, nullable=False, unique=True),
    Column("password_hash", Text),  # The Argon2 hash of the password; NULL: the invitation is not accepted yet.
    Column("password_changed_at", Instant),
    # The encrypted secret of the second factor; NULL: there is none. If the secret of the installation is lost, the second factor
    # cannot be checked. In this case, the password is removed too, because the password alone must not be sufficient to sign in.
    Column("totp_secret", Text, info={"encrypted": "second factor", "clears": ("password_hash",)}),
    Column("totp_step", BigInteger),  # The time step of the latest accepted code. Only codes of later steps are accepted.
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

#: Recovery codes. Each can be used once in place of a code of the second factor.
operator_recovery_codes = Table(
    "operator_recovery_codes",
    metadata,
    Column("operator_id", Integer, primary_key=True, autoincrement=False),
    Column("hash", Text, primary_key=True),
    Column("used_at", Instant),
)

#: The sessions of operators in the portal. A session that was ended has no row, and the row of an expired session stays for a day.
operator_sessions = Table(
    "operator_sessions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("operator_id", Integer, nullable=False, index=True),
    Column("hash", Text, nullable=False, unique=True),  # A hash of the token in the cookie.
    Column(
        "needs_code", Boolean, nullable=False, server_default=false()
    ),  # Whether the password was correct, but the code of the second factor was not entered yet.
    Column("created_at", Instant, nullable=False),
    Column("seen_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False, index=True),
    Column("password_at", Instant, nullable=False),  # The time when the operator last entered the password.
    Column("network", Text, nullable=False),  # The IP network of the client: /24 (IPv4) or /48 (IPv6).
    Column("user_agent", Text, nullable=False),
    sqlite_autoincrement=True,  # An id is never reused, because the audit log contains it.
)

#: Failed sign-ins by name and by network, which determine the delay of the next attempt, and the networks from which a name has
#: signed in (portal/sign_in_delays.py).
sign_in_failures = Table(
    "sign_in_failures",
    metadata,
    Column("key", Text, primary_key=True),  # The kind of the count, and a keyed hash of the name or the network.
    Column("failures", Integer, nullable=False),
    Column("first_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False, index=True),
)

#: The audit log: all changes, and the sign-ins, exports and revealed phone numbers in the portal. Rows are never changed, and they
#: are deleted after their retention time.
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=False),
    Column("at", Instant, nullable=False),
    Column("operator_id", Integer),  # NULL: the actor is not a known operator of the portal.
    Column("operator", Text, nullable=False),  # The name of the actor when the action was recorded.
    Column("session_id", Integer),
    Column("network", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("application_id", Integer),
    Column("object", Text, nullable=False),
    Column("before", Json),  # The changed values before and after the action, without secrets.
    Column("after", Json),
)
