"""If an operator sends a form after the session has expired, this module keeps the entries of the form until the operator has
signed in again.

1. The response to the form is the sign-in page. Its hidden field `kept` contains three things, encrypted with the master secret:
   the entries, the id of the operator, and the time at which the entries expire (`seal`). Nothing is stored yet.
2. When the same operator signs in on this page, the entries are stored, still encrypted (`store_entries`). If another operator
   signs in, they are dropped. The response redirects to the page of the form, so that the history of the browser contains no
   request with the password.
3. The URL of the redirect has the query parameter `kept`. The page is rendered as usual, and then the entries are filled into its
   form (`form_filling.py`). The form is sent only when the operator presses a button.

Fields with passwords and codes are never kept. If the session was ended by signing out or by an admin, its row is deleted, so the
operator is unknown and no entries are kept. A form cannot contain files, because the portal accepts only forms of the type
`x-www-form-urlencoded`.
"""
# Tested by tests/portal/test_kept_entries.py

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection

from shortener.accounts.stored_responses import FirstResponse, RequestKey, claim, find, store
from shortener.model import ALL_APPLICATIONS, record
from shortener.portal.locations import location_of
from shortener.portal.page import KEPT_QUERY, Visit
from shortener.secret import SecretError
from shortener.storage.types import from_ms, to_ms

LIFETIME = timedelta(hours=1)
#: The maximum number of characters of the encrypted entries. The sign-in page sends them in a form, whose size is limited to
#: router.MAX_FORM_BYTES.
MAX_SEALED_CHARACTERS = 192 * 1024
#: The hidden field of the sign-in page that contains the encrypted entries.
FIELD = "kept"
PASSWORD_FIELDS = frozenset({"password", "again", "current", "confirm_password"})
#: Fields that are never kept. They contain passwords, tokens, and codes or secrets of the second factor.
SECRET_FIELDS = PASSWORD_FIELDS | {"code", "setup", "token"}

Entries = Mapping[str, Sequence[str]]


@record
class KeptForm:
    """The entries of a form. `location` is the URL to which the form was sent."""

    operator_id: int
    location: str
    entries: Entries
    expires_at: datetime
    sealed: str


def entries_of(visit: Visit) -> Entries:
    """Return the fields of the form that may be kept."""
    return {name: values for name, values in visit.form_lists.items() if name not in SECRET_FIELDS}


def seal(visit: Visit, operator_id: int) -> str | None:
    """Return the entries of the form as encrypted text, which only the operator with this id can use. Return None if the text
    would be too long."""
    content = {
        "operator": operator_id,
        "location": location_of(visit.request),
        "expires": to_ms(visit.now + LIFETIME),
        "entries": entries_of(visit),
    }
    sealed = visit.service.secret.encrypt(json.dumps(content, ensure_ascii=False))
    return sealed if len(sealed) <= MAX_SEALED_CHARACTERS else None


def unseal(visit: Visit, sealed: str) -> KeptForm | None:
    """Decrypt a text that `seal` returned. Return None if the text is not valid or the entries have expired."""
    if not sealed:
        return None
    try:
        content = json.loads(visit.service.secret.decrypt(sealed))
        expires_at = from_ms(content["expires"])
        form = KeptForm(content["operator"], content["location"], content["entries"], expires_at, sealed)
    except (SecretError, ValueError, TypeError, KeyError):
        return None
    return form if visit.now < expires_at else None


def store_entries(connection: Connection, form: KeptForm | None, operator_id: int, now: datetime) -> str | None:
    """Store the entries for the operator who signs in, and return the URL of the page that shows them. Return None if there are
    no valid entries, or if another operator typed them."""
    if form is None or form.operator_id != operator_id:
        return None
    key = secrets.token_urlsafe(16)
    request = _request_key(operator_id, key)
    claim(connection, request, "", now)
    store(connection, request, FirstResponse(200, form.sealed))
    return form.location + ("&" if "?" in form.location else "?") + f"{KEPT_QUERY}={key}"


async def load_entries(visit: Visit, key: str) -> Entries | None:
    """Return the stored entries for this page. Return None if they have expired, or if they belong to another operator or to
    another page."""
    stored = await visit.service.database.read(find, _request_key(visit.operator.id, key))
    form = None if stored is None else unseal(visit, stored.body)
    if form is None or form.operator_id != visit.operator.id:
        return None
    return form.entries if form.location.partition("?")[0] == location_of(visit.request).partition("?")[0] else None


def _request_key(operator_id: int, key: str) -> RequestKey:
    return RequestKey(ALL_APPLICATIONS, 0, f"entries of operator {operator_id}", key)
