"""This module prevents a form that is sent twice from performing its action twice. A browser sends a form again after a second
click, with the back button, or when the operator reloads the page that is the response to the form. A reload must not create a
second key, and must not replace a secret that was just shown.

Forms that need this protection contain a random `form_id`. The ids of handled forms are stored for 24 hours, like
Idempotency-Keys. If a form with the same id and the same values arrives again, nothing is done. If the first response was a
redirect, the repeat is redirected to the same page. If it was a page with a secret, the repeat gets an error page. The page *Try
it* is an exception: it computes the id of its message from the form (`form_hash`), so a repeat shows the first message again.

One transaction performs the action, adds its audit row and stores the id (`perform_once`). If the transaction fails, nothing is
stored, and the form can be sent again. The form that sends a test event is an exception, because its action is a request to
another server: the id is stored before the request, so a failed form cannot be sent again.
"""
# Tested by tests/portal/test_keys.py, tests/portal/test_domains.py, tests/portal/test_deliveries.py,
# tests/portal/test_admin_operators.py, tests/portal/test_admin_applications.py, tests/portal/test_me.py,
# tests/portal/test_try_it.py and tests/portal/test_tracker_editor.py

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from shortener.accounts.stored_responses import FirstResponse, RequestKey, claim, find, store
from shortener.errors import ApiError, ErrorCode
from shortener.model import ALL_APPLICATIONS
from shortener.portal.page import Visit

P = ParamSpec("P")
T = TypeVar("T")

FIELD = "form_id"


class FormRepeated(ApiError):
    """The error for a form that was already handled. Handlers whose response shows no secret catch it. They redirect to the
    same page as after the first form, or show a page that says that nothing was done."""

    def __init__(self) -> None:
        description = (
            "This form was sent before, for example because the page was reloaded. Its action was performed only the first time. A "
            "secret is shown only once: if you do not have it, open the page again and create a new one."
        )
        super().__init__(ErrorCode.CONFLICT, description)


def new_form_id() -> str:
    """Return a random value for the field `form_id` of a form."""
    return secrets.token_urlsafe(16)


def perform_once(
    connection: Connection, visit: Visit, action: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run `action(connection, ...)` and store, in the same transaction, that the form of the visit was handled.

    Raise FormRepeated if the same form was already handled. For a form without an id, only run the action."""
    request = _key(visit)
    if request is not None and claim(connection, request, "", visit.now) is not None:
        raise FormRepeated
    result = action(connection, *args, **kwargs)
    if request is not None:
        store(connection, request, FirstResponse(200, ""))
    return result


async def is_repeated(visit: Visit) -> bool:
    """Return whether the form of the visit was handled before."""
    request = _key(visit)
    return request is not None and await visit.service.database.read(find, request) is not None


def form_hash(visit: Visit) -> str | None:
    """Return a hash of all values of the form, including its id, in hexadecimal digits. Return None if the form has no id."""
    if not visit.form.get(FIELD):
        return None
    values = json.dumps(dict(visit.form_lists), sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()


def _key(visit: Visit) -> RequestKey | None:
    """Return the key under which the form is stored; None if the form has no id."""
    key = form_hash(visit)
    if key is None:
        return None
    application_id = ALL_APPLICATIONS if visit.application is None else visit.application.id
    return RequestKey(application_id, 0, f"POST {visit.request.url.path}", key)
