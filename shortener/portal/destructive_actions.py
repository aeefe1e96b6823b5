"""The page that asks for a confirmation before an action removes, revokes, disables or replaces something. The page describes what
the action changes.

The button of such an action sends its form without the field `confirmed`. The response is the page that asks, and nothing has
changed yet. The button of that page sends the same form again, with `confirmed` and with a `form_id` (`repeats.py`). Then the
action is performed.
"""
# Tested by tests/portal/test_destructive_actions.py

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from shortener.model import record
from shortener.portal.page import Visit
from shortener.portal.repeats import FIELD as FORM_ID
from shortener.portal.repeats import new_form_id


@record
class Question:
    """The text of the page that asks before an action. `effects` are the sentences that describe what the action changes. `button`
    is the label of the button that performs it. `fields` are the names of the form fields that the action needs in addition to
    `action`."""

    text: str
    effects: Sequence[str]
    button: str
    icon: str = "ban"
    fields: tuple[str, ...] = ()


def is_confirmed(visit: Visit) -> bool:
    """Return whether the form comes from the page that asks for a confirmation."""
    return visit.form.get("confirmed") == "yes"


def is_cancelled(visit: Visit) -> bool:
    """Return whether the operator pressed *Cancel* on a page that asks for a confirmation and keeps the entries."""
    return visit.form.get("confirmed") == "no"


def ask(visit: Visit, question: Question, back: str, *, keeps_entries: bool = False) -> Response:
    """Return the page that asks for a confirmation. `back` is the URL of the page to which *Cancel* leads.

    If `keeps_entries` is true, the page keeps all fields of the form, because the operator may have typed into it. *Cancel* then
    sends the form with `confirmed=no`, and the handler must show it again (`is_cancelled`)."""
    if keeps_entries:
        kept = [(name, value) for name, values in visit.form_lists.items() if name != "confirmed" for value in values]
    else:
        kept = [(name, visit.form.get(name, "")) for name in ("action", *question.fields)]
    if FORM_ID not in dict(kept):
        kept.append((FORM_ID, new_form_id()))
    return visit.render(
        "destructive_action.html",
        compress=False,  # The page contains entries of the form. The size of a compressed page would help to guess a secret.
        title=question.text,
        question=question,
        back=back,
        fields=kept,
        keeps_entries=keeps_entries,
    )
