"""The welcome page, on which an invited operator chooses a password. The fragment of the invitation URL contains the token, and
browsers do not send fragments to servers. A script puts the token into the form and removes it from the address bar. In a browser
without scripts, the operator pastes the link into a field. The invitation is accepted only when the form is sent. A request for
the page alone, such as the link preview of a messenger, changes nothing.
"""

from __future__ import annotations

import contextlib

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.accounts.audit import Actor
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import ALL_APPLICATIONS
from shortener.portal import sessions
from shortener.portal.invitation_url import PATH, invitation_file
from shortener.portal.operators import OpenInvitation, Operator, accept, check_name, find_invitation
from shortener.portal.page import PortalPage, Visit
from shortener.portal.passwords import check_new_password
from shortener.portal.sign_in_delays import delay_text
from shortener.times import time_zone

_NOT_VALID = (
    "This invitation is not valid: it was used, was replaced or has expired. Ask an admin for a new invitation, or run "
    "`shortener operators invite NAME --role admin` on the server."
)


async def welcome(visit: Visit) -> Response:
    """Show the form in which the token is entered. This request does not contain the token."""
    return _page(visit)


def _page(visit: Visit, status: int = 200, *, error: ApiError | None = None, found: OpenInvitation | None = None) -> Response:
    """Return the page with the form for the password if `found` is an open invitation, otherwise with the form for the token."""
    return visit.render(
        "welcome.html",
        status,
        compress=False,
        title="Welcome" if found is None else f"Welcome, {found.operator.name}",
        error=error,
        found=found,
        token=_token(visit) if found is not None else "",
        name=visit.form.get("name", found.operator.name if found is not None else ""),
    )


def _token(visit: Visit) -> str:
    """Return the token from the form field, into which the operator may also have pasted the complete invitation URL."""
    return visit.form.get("token", "").strip().rpartition("#")[2][:200]


async def submit(visit: Visit) -> Response:
    """Look up the invitation. If the form contains a password, accept the invitation and begin a session."""
    database, delays = visit.service.database, visit.portal.delays
    attempt = f"invitation from {visit.network}"
    if wait := await database.write(delays.begin_attempt, attempt, visit.network, visit.now):
        response = _page(visit, 429, error=ApiError(ErrorCode.RATE_LIMITED, delay_text(wait)))
        response.headers["Retry-After"] = str(wait)
        return response
    found = await database.read(find_invitation, _token(visit), visit.now)
    if found is None:
        return _page(visit, 422, error=ApiError(ErrorCode.INVALID_REQUEST, _NOT_VALID))
    await database.write(delays.succeed, attempt, visit.network, visit.now)
    if "password" not in visit.form:
        return _page(visit, found=found)
    name, password = visit.form.get("name", ""), visit.form["password"]
    try:
        if found.may_rename:
            name = check_name(name)
        check_new_password(password, name)
        if password != visit.form.get("again", password):
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("again", "must be the same password")])
        hashed = await visit.portal.passwords.hash(password)
        accepted = await database.write(_accept, visit, name, hashed)
    except ApiError as error:
        return _page(visit, 422, error=error, found=found)
    if accepted is None:
        return _page(visit, 422, error=ApiError(ErrorCode.INVALID_REQUEST, _NOT_VALID))
    operator, token = accepted
    with contextlib.suppress(OSError):
        invitation_file(visit.service.settings.data_dir).unlink(missing_ok=True)
    target = "/portal/me?welcome=1" if operator.roles.get(ALL_APPLICATIONS) else "/portal/"
    return visit.portal.set_cookie(visit.redirect(target), token)


def _accept(connection: Connection, visit: Visit, name: str, hashed: str) -> tuple[Operator, str] | None:
    operator = accept(connection, _token(visit), name, hashed, _time_zone(visit), visit.now)
    if operator is None:
        return None
    token = sessions.begin_session(
        connection,
        operator.id,
        visit.now,
        visit.portal.limits,
        network=visit.network,
        user_agent=visit.request.headers.get("user-agent", ""),
        replaces=None if visit.session is None else visit.session.id,
    )
    visit.audit(connection, "invitation_accepted", operator.name, actor=Actor(operator.id, operator.name, network=visit.network))
    return operator, token


def _time_zone(visit: Visit) -> str | None:
    """Return the time zone that the browser reported in the form. Return None if it is missing or not valid."""
    name = visit.form.get("time_zone", "")[:64]
    try:
        time_zone(name)
    except ValueError:
        return None
    return name


PAGES = [PortalPage(PATH, welcome, submit, is_public=True)]
