"""The sessions of operators. A cookie contains a random token of 256 bits, and a session is the row of a table with the hash of
this token.

A session ends PORTAL_SESSION_DAYS after the sign-in, or earlier after PORTAL_SESSION_IDLE_HOURS without a request. It also ends
when its operator signs out, is disabled or is reset, and when the operator or an admin ends it. When a session is ended, its row
is deleted, so no process accepts its token any more. When a session expires, its row stays for SESSION_RETENTION: if the operator
sends a form after the expiry, the portal keeps the entries for this operator (`kept_entries.py`).

For an operator with a second factor, the correct password begins a session whose `needs_code` is true. This session can open only
the page for the code. When the operator has entered the code, a new session with a new token replaces it. Therefore the token
always changes at a sign-in.
"""
# Tested by tests/portal/test_signin.py

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert, select, update

from shortener.accounts.directory import hash_credential
from shortener.model import record
from shortener.portal.operators import Operator, load_operator
from shortener.retention.purge import SESSION_RETENTION
from shortener.settings import Settings
from shortener.storage.schema import operator_sessions, operators
from shortener.storage.types import AnyRow

#: After the password, the code of the second factor must be entered within this time.
CODE_LIFETIME = timedelta(minutes=10)
#: Actions on keys, secrets, operators and second factors require that the operator entered the password within this time.
RECENT_PASSWORD = timedelta(minutes=10)
#: The interval at which the time of the latest request is stored. Because of it, most requests write nothing.
SEEN_INTERVAL = timedelta(minutes=1)
MAX_USER_AGENT_CHARACTERS = 200

_t = operator_sessions.c


@record
class OperatorSession:
    """A session that has not ended, with its operator."""

    id: int
    operator: Operator
    needs_code: bool
    created_at: datetime
    seen_at: datetime
    expires_at: datetime
    password_at: datetime
    network: str
    user_agent: str

    def has_recent_password(self, now: datetime) -> bool:
        """Return whether the operator entered the password within RECENT_PASSWORD. If the clock was set back, `password_at` can
        be in the future; it must then be at most RECENT_PASSWORD ahead."""
        return abs(now - self.password_at) <= RECENT_PASSWORD


@record
class SessionLimits:
    """The times after which a session ends."""

    idle: timedelta
    absolute: timedelta


def session_limits(settings: Settings) -> SessionLimits:
    """Return the limits that the settings define."""
    return SessionLimits(timedelta(hours=settings.portal_session_idle_hours), timedelta(days=settings.portal_session_days))


def begin_session(
    connection: Connection,
    operator_id: int,
    now: datetime,
    limits: SessionLimits,
    *,
    network: str,
    user_agent: str,
    needs_code: bool = False,
    replaces: int | None = None,
) -> str:
    """Create a session and return its token. `replaces` is the id of an older session, which this function ends. Also delete
    sessions that expired more than SESSION_RETENTION ago."""
    token = secrets.token_urlsafe(32)
    connection.execute(delete(operator_sessions).where(_t.expires_at <= now - SESSION_RETENTION))
    if replaces is not None:
        connection.execute(delete(operator_sessions).where(_t.id == replaces))
    connection.execute(
        insert(operator_sessions).values(
            operator_id=operator_id,
            hash=hash_credential(token),
            needs_code=needs_code,
            created_at=now,
            seen_at=now,
            expires_at=now + (CODE_LIFETIME if needs_code else limits.absolute),
            password_at=now,
            network=network,
            user_agent=user_agent[:MAX_USER_AGENT_CHARACTERS],
        )
    )
    if not needs_code:
        connection.execute(update(operators).where(operators.c.id == operator_id).values(last_sign_in_at=now))
    return token


def find_session(connection: Connection, token: str, now: datetime, limits: SessionLimits) -> OperatorSession | None:
    """Return the session with this token. Return None if there is none, if it has ended or expired, or if its operator is
    disabled."""
    row = connection.execute(select(operator_sessions).where(_t.hash == hash_credential(token))).first()
    if row is None or row.expires_at <= now or row.seen_at + limits.idle <= now:
        return None
    operator = load_operator(connection, row.operator_id)
    if operator is None or operator.is_disabled:
        return None
    return _session(row, operator)


def _session(row: AnyRow, operator: Operator) -> OperatorSession:
    return OperatorSession(
        row.id,
        operator,
        row.needs_code,
        row.created_at,
        row.seen_at,
        row.expires_at,
        row.password_at,
        row.network,
        row.user_agent,
    )


def find_expired(connection: Connection, token: str) -> int | None:
    """Return the id of the operator whose session with this token has expired. Return None if the row of the session is deleted
    (for example because the session was ended), or if the session still needed the code of the second factor."""
    row = connection.execute(select(_t.operator_id, _t.needs_code).where(_t.hash == hash_credential(token))).first()
    return None if row is None or row.needs_code else row.operator_id


def mark_seen(connection: Connection, session_id: int, now: datetime) -> None:
    """Store the time of the latest request of a session."""
    connection.execute(update(operator_sessions).where(_t.id == session_id).values(seen_at=now))


def mark_password(connection: Connection, session_id: int, now: datetime) -> None:
    """Store that the operator has entered the password again."""
    connection.execute(update(operator_sessions).where(_t.id == session_id).values(password_at=now))


def list_sessions(connection: Connection, operator_id: int, now: datetime, limits: SessionLimits) -> Sequence[OperatorSession]:
    """Return the sessions of an operator that have not ended. The session with the latest request is first."""
    operator = load_operator(connection, operator_id)
    if operator is None:
        return []
    rows = connection.execute(
        select(operator_sessions)
        .where(_t.operator_id == operator_id, _t.expires_at > now, _t.seen_at > now - limits.idle, _t.needs_code.is_(False))
        .order_by(_t.seen_at.desc(), _t.id.desc())
    )
    return [_session(row, operator) for row in rows]


def end_session(connection: Connection, session_id: int, operator_id: int) -> bool:
    """End one session of an operator. Return whether this session existed."""
    statement = delete(operator_sessions).where(_t.id == session_id, _t.operator_id == operator_id)
    return bool(connection.execute(statement).rowcount)


def end_sessions(connection: Connection, operator_id: int, except_id: int | None = None) -> int:
    """End all sessions of an operator, or all except one. Return their number."""
    statement = delete(operator_sessions).where(_t.operator_id == operator_id)
    if except_id is not None:
        statement = statement.where(_t.id != except_id)
    return connection.execute(statement).rowcount
