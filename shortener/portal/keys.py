"""/portal/{app}/keys: the page with the API keys, the tracker tokens and the postback keys of an application.

A new key or token is shown once, in the response to its form. If the same form is sent again, it creates nothing (`repeats.py`). No
URL, log line or audit row contains a key or token. To create, revoke or rotate a key or token, an operator must have entered the
password within the last ten minutes.
"""
# Tested by tests/portal/test_keys.py

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.accounts import audited_credentials, credentials
from shortener.accounts.postback_keys import PATH as POSTBACK_PATH
from shortener.accounts.postback_keys import list_postback_keys
from shortener.accounts.settings import DEFAULT_PERMISSIONS, PERMISSIONS
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import parse_counted_id
from shortener.model import record
from shortener.portal.destructive_actions import Question, ask, is_confirmed
from shortener.portal.getting_started import first_call
from shortener.portal.listing import download_short_list
from shortener.portal.operators import Role
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.repeats import FormRepeated, new_form_id, perform_once
from shortener.storage.types import to_iso

MAX_NAME_CHARACTERS = 100
_CSV_COLUMNS = ("kind", "id", "name", "hint", "permissions", "rate_limit", "created_at", "valid_until", "revoked_at")
#: The choices for how long the previous tracker token stays valid after a rotation: hours, with their labels.
OVERLAPS = {"0": "not at all", "1": "1 hour", "24": "24 hours", "168": "7 days"}

#: What each permission of an API key allows, as the page describes it.
PERMISSION_TEXTS: Mapping[str, str] = {
    "sms.send": "Create and send messages",
    "sms.read": "Read messages, clicks, conversions and statistics",
    "trackers.read": "See trackers and deliveries",
    "trackers.write": "Change trackers, replay deliveries",
    "links.write": "Change and switch off links",
    "privacy.erase": "Erase personal data",
    "privacy.reveal": "See complete phone numbers",
    "admin": "Change keys, domains, gateways and settings",
}


@record
class NewSecret:
    """A key or token that was just created. `command` is a shell command that makes a first API call with it. The operator can
    paste the command into a terminal."""

    label: str
    text: str
    command: str | None = None


async def keys(visit: Visit) -> Response:
    """List the API keys, tracker tokens and postback keys of the application, or return them as CSV."""
    if visit.is_csv:
        rows = await visit.service.database.read(_read_csv_rows, visit.application_id, visit.now)
        return await download_short_list(visit, "keys", _CSV_COLUMNS, rows)
    return await _page(visit)


def _read_csv_rows(connection: Connection, application_id: int, now: datetime) -> list[dict[str, Any]]:
    listed = {
        "api_key": credentials.list_keys(connection, application_id),
        "tracker_token": credentials.list_tokens(connection, application_id, now),
        "postback_key": list_postback_keys(connection, application_id),
    }
    return [
        {**row, "kind": kind, **{name: to_iso(row.get(name)) for name in ("created_at", "valid_until", "revoked_at")}}
        for kind, rows in listed.items()
        for row in rows
    ]


def _read_lists(connection: Connection, visit: Visit) -> dict[str, Any]:
    """Return the keys and tokens of the application, as arguments of the template."""
    return {
        "keys": credentials.list_keys(connection, visit.application_id),
        "tokens": credentials.list_tokens(connection, visit.application_id, visit.now),
        "postback_keys": list_postback_keys(connection, visit.application_id),
    }


async def _page(visit: Visit, status: int = 200, *, error: ApiError | None = None) -> Response:
    return _render(visit, await visit.service.database.read(_read_lists, visit), status, error=error)


def _render(
    visit: Visit, lists: Mapping[str, Any], status: int = 200, *, created: NewSecret | None = None, error: ApiError | None = None
) -> Response:
    return visit.render(
        "keys.html",
        status,
        compress=created is None,
        title="Keys",
        **lists,
        permissions=PERMISSION_TEXTS,
        chosen=visit.form_lists.get("permissions", list(DEFAULT_PERMISSIONS)),
        overlaps=OVERLAPS,
        created=created,
        is_revoked=visit.get("revoked") is not None,
        error=error,
        form_id=new_form_id(),
    )


async def change(visit: Visit) -> Response:
    """Create or revoke an API key or a postback key, or rotate the tracker token."""
    try:
        action = _ACTIONS[visit.form.get("action", "")]
    except KeyError:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("action", "is unknown")]) from None

    revoked = visit.redirect(visit.link("keys", revoked=1))

    def write(connection: Connection) -> tuple[NewSecret | None, dict[str, Any]]:
        created = perform_once(connection, visit, action, visit)
        # Read the lists for the page in this transaction. A read after the commit could fail, and then nobody would see the new
        # key.
        return created, _read_lists(connection, visit)

    try:
        if (describe := _QUESTIONS.get(action)) is not None and not is_confirmed(visit):
            return ask(visit, await visit.service.database.read(describe, visit), visit.link("keys"))
        created, lists = await visit.service.database.write(write)
    except FormRepeated as error:
        if action in (_revoke, _revoke_postback_key):
            return revoked
        return await _page(visit, 422, error=error)
    except ApiError as error:
        if error.code not in (ErrorCode.INVALID_REQUEST, ErrorCode.CONFLICT):
            raise
        return await _page(visit, 422, error=error)
    await visit.service.directory.refresh_if_available()
    return revoked if created is None else _render(visit, lists, created=created)


def _create(connection: Connection, visit: Visit) -> NewSecret:
    name = visit.form.get("name", "").strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        reason = f"must have 1 to {MAX_NAME_CHARACTERS} printable characters"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("name", reason)])
    chosen = visit.choices("permissions", PERMISSIONS)
    if not chosen:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("permissions", "must contain at least one permission")])
    key, _ = audited_credentials.create_key(connection, visit.audit_writer, visit.application_id, name, chosen, visit.now)
    return NewSecret(f"The API key of {name}", key, first_call(visit.service.settings.base_url, key))


def _key_id(visit: Visit) -> int:
    """Return the id of the key in the form. Raise ApiError NOT_FOUND if it is not a number."""
    key_id = parse_counted_id(visit.form.get("key", ""))
    if key_id is None:
        raise ApiError(ErrorCode.NOT_FOUND)
    return key_id


def _revocation(name: str, effects: list[str]) -> Question:
    return Question(f"Revoke the key {name}?", effects, "Revoke", fields=("key",))


def _describe_revocation(connection: Connection, visit: Visit) -> Question:
    """Return the question that is asked before an API key is revoked."""
    listed = credentials.list_keys(connection, visit.application_id)
    row: Mapping[str, Any] = credentials.find_key(connection, visit.application_id, _key_id(visit))
    effects = [
        f"Requests with the key {row['hint']}… get 401 from now on. It has the permissions {', '.join(row['permissions'])}.",
        "A revoked key cannot be used again. If your software still uses this key, create a new one first.",
    ]
    if not any(one["revoked_at"] is None and one["id"] != row["id"] for one in listed):
        effects.append("This is the only valid API key: without it, no software can call the API of this application.")
    return _revocation(credentials.key_name(row), effects)


def _revoke(connection: Connection, visit: Visit) -> None:
    audited_credentials.revoke_key(connection, visit.audit_writer, visit.application_id, _key_id(visit), visit.now)


def _overlap(visit: Visit) -> str:
    """Return the key of OVERLAPS that the operator has chosen in the form: how long the previous token stays valid. Raise
    ApiError INVALID_REQUEST if the form contains another value."""
    overlap = visit.form.get("overlap", "24")
    if overlap not in OVERLAPS:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("overlap", f"must be one of {', '.join(OVERLAPS)}")])
    return overlap


def _describe_rotation(connection: Connection, visit: Visit) -> Question:
    """Return the question that is asked before the tracker token is replaced."""
    overlap = _overlap(visit)
    effects = [
        "Conversion reports with the current token get 401 from now on."
        if overlap == "0"
        else f"Trackers can use the current token for {OVERLAPS[overlap]} more. Replace it in their configuration by then.",
        "The new token is shown once, on the next page.",
    ]
    if any(token["valid_until"] is not None for token in credentials.list_tokens(connection, visit.application_id, visit.now)):
        effects.append("The previous token, which is still valid, gets 401 from now on.")
    return Question("Replace the tracker token?", effects, "Create a new token", "rotate-ccw", ("overlap",))


def _rotate(connection: Connection, visit: Visit) -> NewSecret:
    overlap = timedelta(hours=int(_overlap(visit)))
    token, _ = audited_credentials.rotate_token(connection, visit.audit_writer, visit.application_id, visit.now, overlap)
    return NewSecret("The new tracker token", token)


def _create_postback_key(connection: Connection, visit: Visit) -> NewSecret:
    name = visit.form.get("network", "")
    try:
        _, key = audited_credentials.create_postback_key(connection, visit.audit_writer, visit.application_id, name, visit.now)
    # In the form, the field `network` contains the name of the postback key, so an error about `name` must refer to `network`.
    except ApiError as error:
        details = [Detail("network", detail.reason) for detail in error.details]
        raise ApiError(error.code, error.description, details=details) from None
    url = visit.service.settings.base_url + POSTBACK_PATH.replace("{postback_key}", key)
    return NewSecret(
        f"The postback URL of {name.strip() or 'the network'}", url + "?message_id={message_id}&status={status}&value={payout}"
    )


def _describe_postback_revocation(connection: Connection, visit: Visit) -> Question:
    """Return the question that is asked before a postback key is revoked."""
    key_id = _key_id(visit)
    row = next((one for one in list_postback_keys(connection, visit.application_id) if one["id"] == key_id), None)
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND)
    effects = [
        f"Conversions that the network reports with the key {row['hint']}… are rejected from now on and do not count.",
        "A revoked key cannot be used again. If the network still sends reports, give it a new postback URL first.",
    ]
    return _revocation(credentials.key_name(row), effects)


def _revoke_postback_key(connection: Connection, visit: Visit) -> None:
    audited_credentials.revoke_postback_key(connection, visit.audit_writer, visit.application_id, _key_id(visit), visit.now)


_ACTIONS: dict[str, Callable[[Connection, Visit], NewSecret | None]] = {
    "create": _create,
    "revoke": _revoke,
    "rotate": _rotate,
    "create_postback_key": _create_postback_key,
    "revoke_postback_key": _revoke_postback_key,
}

#: The actions that an operator must confirm. The second function of each returns the question on the confirmation page.
_QUESTIONS: dict[Callable[[Connection, Visit], NewSecret | None], Callable[[Connection, Visit], Question]] = {
    _revoke: _describe_revocation,
    _rotate: _describe_rotation,
    _revoke_postback_key: _describe_postback_revocation,
}

PAGES = [
    PortalPage(
        "/portal/{app}/keys",
        keys,
        change,
        role=Role.MANAGER,
        csv=True,
        all_applications=False,
        navigation=NavigationItem("Keys", "key", 10, "setup"),
        needs_recent_password=True,
    ),
]
