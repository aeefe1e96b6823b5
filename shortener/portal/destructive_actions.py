"""The page that asks before an action that removes, revokes or disables something. It names what the action affects.

The button of such an action sends its form without the field `confirmed`. The response is this page, and nothing has changed yet.
The button of this page sends the same form again, with `confirmed`.
"""
# Tested by tests/portal/test_destructive_actions.py

from __future__ import annotations

from collections.abc import Iterable

from starlette.responses import Response

from shortener.portal.page import Visit


def is_confirmed(visit: Visit) -> bool:
    """Return whether the form comes from the page that asks."""
    return visit.form.get("confirmed") == "yes"


def ask(
    visit: Visit, question: str, effects: Iterable[str], button: str, back: str, *fields: str, icon: str = "trash-2"
) -> Response:
    """Return the page that asks. `effects` are the sentences that describe what the action changes. `fields` are the names of the
    form fields that the action needs in addition to `action`. `back` is the URL of the page to which *Cancel* leads."""
    kept = {name: visit.form.get(name, "") for name in ("action", *fields)}
    return visit.render(
        "destructive_action.html", title=question, effects=list(effects), button=button, back=back, fields=kept, icon=icon
    )
