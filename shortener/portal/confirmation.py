"""This module asks operators for their password again before an action that requires a recent password
(`PortalPage.needs_recent_password`). If the operator has not entered the password recently, the response to the form is a page
that asks for it. That page contains the fields of the form as hidden inputs, and sends them together with the password to the URL
of the form. For this second request, the router checks the origin of the form, the path, the session and the role again. Then the
form is handled like any other form.
"""
# Tested by tests/portal/test_confirmation.py

from __future__ import annotations

from starlette.responses import Response

from shortener.portal.kept_entries import PASSWORD_FIELDS
from shortener.portal.locations import location_of, previous_page, safe_next
from shortener.portal.page import Visit
from shortener.portal.signin import check_password

#: The names of two form fields. The first contains the operator's password, the second the URL of the page with the
#: original form.
PASSWORD_FIELD = "confirm_password"  # noqa: S105 - the name of a form field, not a password
BACK_FIELD = "confirm_back"
_OWN_FIELDS = frozenset({PASSWORD_FIELD, BACK_FIELD})


async def ask_for_password(visit: Visit) -> Response | None:
    """Return a page that asks for the password and keeps the fields of the form. Return None if the password was entered
    recently, or if the form contains the correct password. If the result is None, `visit.form` no longer contains the fields of
    the password page."""
    given, back = visit.form.get(PASSWORD_FIELD), visit.form.get(BACK_FIELD)
    visit.form = {name: value for name, value in visit.form.items() if name not in _OWN_FIELDS}
    visit.form_lists = {name: values for name, values in visit.form_lists.items() if name not in _OWN_FIELDS}
    if visit.current_session.has_recent_password(visit.now):
        return None
    problem = None if given is None else await check_password(visit, given)
    if given is not None and problem is None:
        return None
    # The page is not compressed, because it contains the fields of the form, which can be secrets. The size of a compressed page
    # could reveal parts of them.
    return visit.render(
        "confirm_form.html",
        403 if given is None else 422,
        compress=False,
        title="Confirm your password",
        error=None if problem is None else f"The password {problem}.",
        action=location_of(visit.request),
        back=safe_next(back or previous_page(visit.request)),
        fields=[(name, value) for name, values in visit.form_lists.items() if name not in PASSWORD_FIELDS for value in values],
        password_field=PASSWORD_FIELD,
        back_field=BACK_FIELD,
    )
