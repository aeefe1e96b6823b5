"""The pages for signing in and out: the password, the second factor, and the password again before sensitive actions. A failed
attempt gets the same error text, after the same time, whether the name exists or not. After several failures, further attempts
are rejected for some seconds without a check of the password (`sign_in_delays.py`). The audit log contains each attempt.

If an operator sends a form after the session has expired, the response is the sign-in page, which keeps the entries of the form
(`kept_entries.py`).
"""

from __future__ import annotations

from sqlalchemy import Connection, select
from starlette.responses import Response

from shortener.accounts.audit import Actor
from shortener.model import record
from shortener.plurals import counted
from shortener.portal import kept_entries, second_factor, sessions
from shortener.portal.locations import CODE_PATH, CONFIRM_PATH, LOST_FORM_QUERY, SIGN_IN_PATH, location_of, safe_next
from shortener.portal.operators import MAX_NAME_CHARACTERS
from shortener.portal.page import PortalPage, Visit, url
from shortener.portal.sign_in_delays import delay_text
from shortener.storage.schema import operators

_REJECTED = "The name or the password is not correct."


@record
class _Account:
    id: int
    name: str
    password_hash: str
    has_second_factor: bool


def _find_account(connection: Connection, name: str) -> _Account | None:
    """Return the operator with this name, or None if there is none who can sign in."""
    row = connection.execute(
        select(operators).where(
            operators.c.name_key == name.strip().casefold(),
            operators.c.password_hash.is_not(None),
            operators.c.disabled_at.is_(None),
        )
    ).first()
    return None if row is None else _Account(row.id, row.name, row.password_hash, row.totp_secret is not None)


async def sign_in_form(visit: Visit) -> Response:
    """Show the sign-in form, or redirect to the next page if the operator is already signed in."""
    if visit.session is not None and not visit.session.needs_code:
        return visit.redirect(safe_next(visit.get("next")))
    return _sign_in_page(visit)


def _sign_in_page(visit: Visit, status: int = 200, *, error: str | None = None) -> Response:
    return visit.render(
        "signin.html",
        status,
        title="Sign in",
        error=error,
        name=visit.form.get("name", ""),
        next=safe_next(visit.get("next")),
        is_signed_out=visit.get("signed-out") is not None,
        kept=visit.form.get(kept_entries.FIELD, ""),
        is_too_large=False,
        is_form_lost=visit.get(LOST_FORM_QUERY) is not None,
    )


def sign_in_again(visit: Visit, operator_id: int) -> Response:
    """Return the sign-in page as the response to a form that was sent after the session had expired. The page keeps the entries
    of the form."""
    sealed = kept_entries.seal(visit, operator_id)
    return visit.render(
        "signin.html",
        403,
        title="Sign in",
        error=None,
        name="",
        next=location_of(visit.request),
        is_signed_out=False,
        kept=sealed or "",
        is_too_large=sealed is None,
        is_form_lost=False,
    )


async def sign_in(visit: Visit) -> Response:
    """Check the password and begin a session."""
    database, delays = visit.service.database, visit.portal.delays
    name, password = visit.form.get("name", "")[: 4 * MAX_NAME_CHARACTERS].strip(), visit.form.get("password", "")
    if wait := await database.write(delays.begin_attempt, name, visit.network, visit.now):
        return _too_many(visit, wait)
    account = await database.read(_find_account, name)
    if not await visit.portal.passwords.verify(account.password_hash if account else None, password) or account is None:
        await database.write(_fail, visit, name, "sign_in_failed")
        return _sign_in_page(visit, 422, error=_REJECTED)
    kept = kept_entries.unseal(visit, visit.form.get(kept_entries.FIELD, ""))

    def begin(connection: Connection) -> tuple[str, str | None]:
        token = _begin(connection, visit, account, needs_code=account.has_second_factor)
        return token, kept_entries.store_entries(connection, kept, account.id, visit.now)

    token, location = await database.write(begin)
    location = location or visit.get("next")
    target = url(CODE_PATH, {"next": location}) if account.has_second_factor else safe_next(location)
    return visit.portal.set_cookie(visit.redirect(target), token)


def _too_many(visit: Visit, wait: int) -> Response:
    response = _sign_in_page(visit, 429, error=delay_text(wait))
    response.headers["Retry-After"] = str(wait)
    return response


def _fail(connection: Connection, visit: Visit, name: str, action: str) -> None:
    # Store the name in the audit row only if it is the name of an operator. An unknown name may be a password that was typed into
    # the wrong field.
    known = connection.execute(select(operators.c.name).where(operators.c.name_key == name.casefold())).scalar()
    visit.audit(connection, action, known or "unknown name", actor=Actor(network=visit.network))


def _begin(connection: Connection, visit: Visit, account: _Account, *, needs_code: bool) -> str:
    """Begin a new session and end the previous session of the browser."""
    replaced = None if visit.session is None else visit.session.id
    token = sessions.begin_session(
        connection,
        account.id,
        visit.now,
        visit.portal.limits,
        network=visit.network,
        user_agent=visit.request.headers.get("user-agent", ""),
        needs_code=needs_code,
        replaces=replaced,
    )
    if needs_code:
        visit.portal.delays.accept_password(connection, visit.network)
    else:
        visit.portal.delays.succeed(connection, account.name, visit.network, visit.now)
        visit.audit(connection, "signed_in", account.name, actor=Actor(account.id, account.name, network=visit.network))
    return token


async def code_form(visit: Visit) -> Response:
    """Show the form in which the operator enters the code of the second factor."""
    if visit.session is None or not visit.session.needs_code:
        return visit.redirect(SIGN_IN_PATH)
    return _code_page(visit)


def _code_page(visit: Visit, status: int = 200, *, error: str | None = None) -> Response:
    is_form_lost = visit.get(LOST_FORM_QUERY) is not None
    next_page = safe_next(visit.get("next"))
    return visit.render("code.html", status, title="Second factor", error=error, next=next_page, is_form_lost=is_form_lost)


async def check_code(visit: Visit) -> Response:
    """Check the code of the second factor. If it is correct, replace the session by a new session with another token."""
    session, database, delays = visit.session, visit.service.database, visit.portal.delays
    if session is None or not session.needs_code:
        return visit.redirect(SIGN_IN_PATH)
    operator = session.operator
    if wait := await database.write(delays.begin_attempt, operator.name, visit.network, visit.now):
        response = _code_page(visit, 429, error=delay_text(wait))
        response.headers["Retry-After"] = str(wait)
        return response
    code = visit.form.get("code", "").strip()[:40]

    def complete(connection: Connection) -> str | None:
        used = second_factor.use_code(connection, operator.id, code, visit.now, visit.service.secret)
        if used is None:
            _fail(connection, visit, operator.name, "code_failed")
            return None
        if used == "recovery":
            visit.audit(connection, "recovery_code_used", operator.name)
        return _begin(connection, visit, _Account(operator.id, operator.name, "", True), needs_code=False)

    second_factor.load_libraries(visit.service.secret)
    token = await database.write(complete)
    if token is None:
        return _code_page(visit, 422, error="The code is not correct, or it was used before. Wait for the next code.")
    return visit.portal.set_cookie(visit.redirect(safe_next(visit.get("next"))), token)


async def sign_out(visit: Visit) -> Response:
    """End the session in the database, so that no process accepts its token any more, and delete the cookie."""
    session = visit.session
    if session is not None:

        def end(connection: Connection) -> None:
            if sessions.end_session(connection, session.id, session.operator.id):
                visit.audit(connection, "signed_out", session.operator.name)

        await visit.service.database.write(end)
    return visit.portal.delete_cookie(visit.redirect(f"{SIGN_IN_PATH}?signed-out=1"))


async def confirm_form(visit: Visit) -> Response:
    """Show the form that asks for the password again. It appears before a page that requires a recent password. For a form
    that requires a recent password, `confirmation.py` asks for the password instead."""
    return visit.render("confirm.html", title="Confirm your password", error=None, next=safe_next(visit.get("next")))


async def confirm(visit: Visit) -> Response:
    """Check the password that the operator has entered again. Then redirect to the page that requires it."""
    problem = await check_password(visit, visit.form.get("password", ""))
    if problem is None:
        return visit.redirect(safe_next(visit.get("next")))
    error = f"The password {problem}."
    return visit.render("confirm.html", 422, title="Confirm your password", error=error, next=safe_next(visit.get("next")))


async def check_password(visit: Visit, password: str) -> str | None:
    """Check the password of the operator who is signed in. Return None if it is correct, otherwise an error text. A correct
    password permits sensitive actions for ten minutes."""
    database, delays, session = visit.service.database, visit.portal.delays, visit.current_session
    name = session.operator.name
    # Count failures by session instead of by name. Otherwise a stranger who fails to sign in with this name would delay the
    # operator.
    subject = f"session {session.id}"
    if wait := await database.write(delays.begin_attempt, subject, visit.network, visit.now):
        return f"was wrong too often; try again in {counted(wait, 'second')}"
    account = await database.read(_find_account, name)
    if account is None or not await visit.portal.passwords.verify(account.password_hash, password):
        await database.write(_fail, visit, name, "password_check_failed")
        return "is not correct"

    def succeed(connection: Connection) -> None:
        delays.succeed(connection, subject, visit.network, visit.now)
        sessions.mark_password(connection, session.id, visit.now)

    await database.write(succeed)
    return None


PAGES = [
    PortalPage(SIGN_IN_PATH, sign_in_form, sign_in, is_public=True),
    PortalPage(CODE_PATH, code_form, check_code, is_public=True),
    PortalPage("/portal/signout", None, sign_out, is_public=True),
    PortalPage(CONFIRM_PATH, confirm_form, confirm, role=None),
]
