"""/portal/me: the page on which operators change their own account: second factor, password, theme, time zone and sessions.

Recovery codes are shown once, in the response to the form. If the same form is sent again, it creates no new codes (`repeats.py`).
"""

# Tested by tests/portal/test_me.py

from __future__ import annotations

from zoneinfo import available_timezones

from sqlalchemy import Connection, select, update
from starlette.responses import Response

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import parse_counted_id
from shortener.portal import second_factor, sessions
from shortener.portal.destructive_actions import Question, ask, is_confirmed
from shortener.portal.formats import browser
from shortener.portal.locations import CONFIRM_PATH
from shortener.portal.operators import THEMES
from shortener.portal.page import PortalPage, Visit, url
from shortener.portal.passwords import check_new_password
from shortener.portal.qr_codes import qr_code
from shortener.portal.repeats import new_form_id, perform_once
from shortener.portal.signin import check_password
from shortener.secret import SecretError
from shortener.storage.schema import operators
from shortener.times import time_zone

PATH = "/portal/me"
FACTOR_PATH = f"{PATH}/second-factor"
_FACTOR, _SESSIONS = f"{PATH}#second-factor", f"{PATH}#sessions"
_SAVED = {
    "preferences": "Your preferences are saved.",
    "password": "Your password is changed.",
    "sessions": "The sessions are ended.",
    "factor-off": "The second factor is off.",
}


async def me(visit: Visit) -> Response:
    """Show the account of the operator who is signed in."""
    return await _account(visit)


async def _account(visit: Visit, status: int = 200, *, error: ApiError | None = None) -> Response:
    database, operator = visit.service.database, visit.operator
    listed = await database.read(sessions.list_sessions, operator.id, visit.now, visit.portal.limits)
    left = await database.read(second_factor.count_recovery_codes, operator.id)
    return visit.render(
        "me.html",
        status,
        title="Your account",
        error=error,
        sessions=listed,
        codes_left=left,
        time_zones=sorted(available_timezones()),
        saved=_SAVED.get(visit.get("saved") or ""),
        is_new=visit.get("welcome") is not None,
    )


async def save_preferences(visit: Visit) -> Response:
    """Store the operator's preferences: the theme, the time zone, and whether keyboard shortcuts are on."""
    theme, zone = visit.form.get("theme", "system"), visit.form.get("time_zone", "").strip()
    try:
        if theme not in THEMES:
            raise _invalid("theme", f"must be one of {', '.join(THEMES)}")
        try:
            time_zone(zone or "UTC")
        except ValueError as error:
            raise _invalid("time_zone", str(error)) from None
    except ApiError as error:
        return await _account(visit, 422, error=error)
    values = {"theme": theme, "time_zone": zone or None, "shortcuts": "shortcuts" in visit.form}

    def write(connection: Connection) -> None:
        connection.execute(update(operators).where(operators.c.id == visit.operator.id).values(values))

    await visit.service.database.write(write)
    return visit.redirect(f"{PATH}?saved=preferences")


async def change_password(visit: Visit) -> Response:
    """Check the current password and store the new password. The session gets a new token. If the operator chose so in the form,
    all other sessions end."""
    session, form = visit.current_session, visit.form
    database, operator = visit.service.database, session.operator
    try:
        password = form.get("password", "")
        check_new_password(password, operator.name)
        if password != form.get("again", password):
            raise _invalid("again", "must be the same password")
        if problem := await check_password(visit, form.get("current", "")):
            raise _invalid("current", problem)
    except ApiError as error:
        return await _account(visit, 422, error=error)
    hashed = await visit.portal.passwords.hash(password)

    def write(connection: Connection) -> str:
        values = {"password_hash": hashed, "password_changed_at": visit.now}
        connection.execute(update(operators).where(operators.c.id == operator.id).values(values))
        ended = sessions.end_sessions(connection, operator.id, session.id) if "end_others" in form else 0
        visit.audit(connection, "password_changed", operator.name, after={"ended_sessions": ended})
        return _renew(connection, visit)

    token = await database.write(write)
    return visit.portal.set_cookie(visit.redirect(f"{PATH}?saved=password"), token)


def _renew(connection: Connection, visit: Visit) -> str:
    """Replace the session by a new session with another token. An old token must not have the rights that the session has now."""
    session = visit.current_session
    user_agent = visit.request.headers.get("user-agent", "")
    return sessions.begin_session(
        connection,
        session.operator.id,
        visit.now,
        visit.portal.limits,
        network=visit.network,
        user_agent=user_agent,
        replaces=session.id,
    )


async def factor_form(visit: Visit) -> Response:
    """Show a new secret for an authenticator app. The secret is stored only when the operator has entered a code from the app
    (`enable_factor`)."""
    session = visit.current_session
    if not session.has_recent_password(visit.now):
        return visit.redirect(url(CONFIRM_PATH, {"next": FACTOR_PATH}))
    return _factor_page(visit, second_factor.new_totp_secret())


def _factor_page(visit: Visit, secret: str, status: int = 200, *, error: str | None = None) -> Response:
    uri = second_factor.provisioning_uri(secret, visit.operator.name)
    return visit.render(
        "second_factor.html",
        status,
        compress=False,
        title="Second factor",
        error=error,
        secret=secret,
        setup=visit.service.secret.encrypt(secret),
        code_image=qr_code(uri, "QR code for the authenticator app", border=2),
        form_id=new_form_id(),
    )


async def enable_factor(visit: Visit) -> Response:
    """Check the first code from the authenticator app, and store the secret. The response shows the recovery codes, once."""
    database, operator = visit.service.database, visit.operator
    try:
        secret = visit.service.secret.decrypt(visit.form.get("setup", ""))
    except SecretError:
        return visit.redirect(FACTOR_PATH)
    step = second_factor.matching_step(secret, visit.form.get("code", ""), visit.now)

    def write(connection: Connection) -> tuple[list[str], str]:
        if step is None:
            error = "The code is not correct. Check that the clock of your phone is right, and enter the code that the app shows."
            raise ApiError(ErrorCode.INVALID_REQUEST, error)
        codes = second_factor.enable(connection, operator.id, secret, step, visit.service.secret)
        visit.audit(connection, "second_factor_enabled", operator.name)
        return codes, _renew(connection, visit)

    try:
        codes, token = await database.write(perform_once, visit, write)
    except ApiError as error:
        if error.code is ErrorCode.INVALID_REQUEST:
            return _factor_page(visit, secret, 422, error=error.description)
        return await _account(visit, 422, error=error)
    return visit.portal.set_cookie(_codes_page(visit, codes), token)


def _codes_page(visit: Visit, codes: list[str]) -> Response:
    return visit.render("recovery_codes.html", compress=False, title="Recovery codes", codes=codes)


async def new_codes(visit: Visit) -> Response:
    """Replace the recovery codes of the operator, and show the new codes once."""
    operator = visit.operator
    if not is_confirmed(visit):
        left = await visit.service.database.read(second_factor.count_recovery_codes, operator.id)
        effects = [
            f"The present recovery codes become invalid; {left} of them {'is' if left == 1 else 'are'} not used yet.",
            "The next page shows ten new codes. They are shown only once.",
        ]
        return ask(visit, Question("Replace your recovery codes?", effects, "Create new codes", "refresh-cw"), _FACTOR)

    def write(connection: Connection) -> list[str] | None:
        if connection.execute(select(operators.c.totp_secret).where(operators.c.id == operator.id)).scalar() is None:
            return None
        visit.audit(connection, "recovery_codes_renewed", operator.name)
        return second_factor.new_recovery_codes(connection, operator.id)

    try:
        codes = await visit.service.database.write(perform_once, visit, write)
    except ApiError as error:
        return await _account(visit, 422, error=error)
    return visit.redirect(FACTOR_PATH) if codes is None else _codes_page(visit, codes)


async def disable_factor(visit: Visit) -> Response:
    """Remove the second factor of the operator."""
    operator = visit.operator
    if not is_confirmed(visit):
        effects = [
            "Signing in then needs only the password. Anybody who steals it can see and do everything that you may see and do.",
            "The recovery codes become invalid. To turn the second factor on again, set it up again in your app.",
        ]
        return ask(visit, Question("Turn off the second factor?", effects, "Turn off"), _FACTOR)

    def write(connection: Connection) -> str:
        second_factor.disable_factor(connection, operator.id)
        visit.audit(connection, "second_factor_disabled", operator.name)
        return _renew(connection, visit)

    token = await visit.service.database.write(write)
    return visit.portal.set_cookie(visit.redirect(f"{PATH}?saved=factor-off"), token)


async def end_session(visit: Visit) -> Response:
    """End one session of the operator, or all sessions except the current one."""
    session = visit.current_session
    chosen = visit.form.get("session", "")
    if not is_confirmed(visit):
        return await _ask_before_end(visit, session.id, chosen)

    def write(connection: Connection) -> None:
        if chosen == "others":
            ended = sessions.end_sessions(connection, session.operator.id, session.id)
        else:
            session_id = parse_counted_id(chosen)
            ended = int(session_id is not None and sessions.end_session(connection, session_id, session.operator.id))
        if ended:
            visit.audit(connection, "sessions_ended", session.operator.name, after={"ended": ended})

    await visit.service.database.write(write)
    return visit.redirect(f"{PATH}?saved=sessions#sessions")


async def _ask_before_end(visit: Visit, own: int, chosen: str) -> Response:
    """Return the page that asks before sessions end. If no session would end, redirect to the list of sessions."""
    listed = await visit.service.database.read(sessions.list_sessions, visit.operator.id, visit.now, visit.portal.limits)
    ending = [one for one in listed if one.id != own and chosen in ("others", str(one.id))]
    if not ending:
        return visit.redirect(_SESSIONS)
    effects = [f"{browser(one.user_agent)}, {one.network or 'unknown network'}: signed out at once." for one in ending]
    effects.append("Anything typed into forms that are open there is lost.")
    text = "End all other sessions?" if chosen == "others" else "End this session?"
    return ask(visit, Question(text, effects, "End", "log-out", ("session",)), _SESSIONS)


def _invalid(field: str, reason: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(field, reason)])


PAGES = [
    PortalPage(PATH, me, role=None),
    # The URLs of the forms show the account page for GET requests, because browsers request these URLs after an error or a new
    # sign-in.
    PortalPage(f"{PATH}/preferences", me, save_preferences, role=None),
    PortalPage(f"{PATH}/password", me, change_password, role=None),
    PortalPage(FACTOR_PATH, factor_form, enable_factor, role=None, needs_recent_password=True),
    PortalPage(f"{FACTOR_PATH}/off", me, disable_factor, role=None, needs_recent_password=True),
    PortalPage(f"{FACTOR_PATH}/codes", me, new_codes, role=None, needs_recent_password=True),
    PortalPage(f"{PATH}/sessions", me, end_session, role=None),
]
