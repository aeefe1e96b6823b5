"""Forms whose response shows a new secret, and that a browser sends again if the page is reloaded.

Such a form contains a random `form_id`. A form that is sent again with the same id and the same values is rejected, so a reload
does not create a second key that hides the first one. The ids are stored like Idempotency-Keys, for 24 hours.
"""
# Tested by tests/portal/test_keys.py and tests/portal/test_tracker_editor.py

from __future__ import annotations

import hashlib
import json
import secrets

from sqlalchemy import Connection

from shortener.accounts.stored_responses import FirstResponse, RequestKey, claim, release, store
from shortener.errors import ApiError, ErrorCode
from shortener.portal.page import Visit

FIELD = "form_id"


def new_form_id() -> str:
    """Return the value of the field `form_id` for a form that is shown."""
    return secrets.token_urlsafe(16)


def begin_form(connection: Connection, visit: Visit) -> None:
    """Claim the form of a visit. Raise ApiError CONFLICT if the same form was handled before, and REQUEST_IN_PROGRESS while it is
    being handled. A form without an id is not checked."""
    request = _key(visit)
    if request is not None and claim(connection, request, "", visit.now) is not None:
        description = (
            "This form was sent before, for example because the page was reloaded. Its action was performed then, and the "
        )
        raise ApiError(ErrorCode.CONFLICT, description + "secret was shown only once. Nothing was done again.")


def end_form(connection: Connection, visit: Visit) -> None:
    """Store that the form was handled."""
    request = _key(visit)
    if request is not None:
        store(connection, request, FirstResponse(200, ""))


def release_form(connection: Connection, visit: Visit) -> None:
    """Give up the claim of a form that failed, so that it can be sent again."""
    request = _key(visit)
    if request is not None:
        release(connection, request)


def _key(visit: Visit) -> RequestKey | None:
    """Return the key under which the form is stored; None if the form has no id. The key depends on the values of the form, so a
    form with the same id and other values is another form."""
    if not visit.form.get(FIELD):
        return None
    values = json.dumps(dict(visit.form_lists), sort_keys=True)
    return RequestKey(visit.application_id, 0, f"POST {visit.page.path}", hashlib.sha256(values.encode()).hexdigest())
