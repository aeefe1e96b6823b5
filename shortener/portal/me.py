"""GET /portal/me: the operator's own account: theme, time zone, sessions."""
# Tested by tests/portal/test_signin.py

from __future__ import annotations

from zoneinfo import available_timezones

from sqlalchemy import Connection, update
from starlette.responses import Response

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.portal import sessions
from shortener.portal.operators import THEMES
from shortener.portal.page import PortalPage, Visit
from shortener.storage.schema import operators
from shortener.web.period import time_zone

PATH = "/portal/me"


async def me(visit: Visit) -> Response:
    """Show the account."""
    listed = await visit.service.database.read(sessions.list_sessions, visit.operator.id, visit.now, visit.portal.limits)
    return visit.render(
        "me.html",
        title="Your account",
        sessions=listed,
        time_zones=sorted(available_timezones()),
        saved=visit.get("saved"),
    )


async def save_preferences(visit: Visit) -> Response:
    """Store theme, time zone and shortcuts."""
    theme, zone = visit.form.get("theme", "system"), visit.form.get("time_zone", "").strip()
    if theme not in THEMES:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("theme", f"must be one of {', '.join(THEMES)}")])
    try:
        time_zone(zone or "UTC")
    except ValueError as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("time_zone", str(error))]) from None
    values = {"theme": theme, "time_zone": zone or None, "shortcuts": "shortcuts" in visit.form}

    def write(connection: Connection) -> None:
        connection.execute(update(operators).where(operators.c.id == visit.operator.id).values(values))

    await visit.service.database.write(write)
    return visit.redirect(f"{PATH}?saved=preferences")


async def end_session(visit: Visit) -> Response:
    """End one session of the operator, or all others."""
    session = visit.session
    assert session is not None
    chosen = visit.form.get("session", "")

    def write(connection: Connection) -> None:
        if chosen == "others":
            ended = sessions.end_sessions(connection, session.operator.id, session.id)
        else:
            is_number = chosen.isascii() and chosen.isdecimal() and len(chosen) < 10
            ended = int(is_number and sessions.end_session(connection, int(chosen), session.operator.id))
        if ended:
            visit.audit(connection, "sessions_ended", session.operator.name, after={"ended": ended})

    await visit.service.database.write(write)
    return visit.redirect(f"{PATH}?saved=sessions#sessions")


PAGES = [
    PortalPage(PATH, me, role=None),
    PortalPage(f"{PATH}/preferences", None, save_preferences, role=None),
    PortalPage(f"{PATH}/sessions", None, end_session, role=None),
]
