"""This module asks for a confirmation before an action removes, revokes, disables or replaces something. The page that asks
describes what the action changes.

The first form for such an action has no field `confirmed`. The response is the page that asks; nothing has changed yet. The
button on that page sends the same form again, with `confirmed` and with a `form_id` (`repeats.py`). The action is then performed.
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
    """The texts of the page that asks for a confirmation. `effects` are sentences that describe what the action changes. `button`
    is the label of the button that performs the action. `fields` are the names of the form fields, besides `action`, that the
    action needs."""

    text: str
    effects: Sequence[str]
    button: str
    icon: str = "ban"
    fields: tuple[str, ...] = ()


def is_confirmed(visit: Visit) -> bool:
    """Return whether the operator has confirmed the action. The form then comes from the page that asks."""
    return visit.form.get("confirmed") == "yes"


def is_cancelled(visit: Visit) -> bool:
    """Return whether the operator pressed *Cancel* on a page that `ask` created with `keeps_entries`."""
    return visit.form.get("confirmed") == "no"


def ask(visit: Visit, question: Question, back: str, *, keeps_entries: bool = False) -> Response:
    """Return the page that asks for a confirmation. `back` is the URL of the page to which *Cancel* leads.

    If the operator may have typed into the form, set `keeps_entries`: the page then contains all fields of the form. *Cancel*
    sends these fields with `confirmed=no`, and the handler must show the form with them again (`is_cancelled`)."""
    if keeps_entries:
        kept = [(name, value) for name, values in visit.form_lists.items() if name != "confirmed" for value in values]
    else:
        kept = [(name, visit.form.get(name, "")) for name in ("action", *question.fields)]
    if FORM_ID not in dict(kept):
        kept.append((FORM_ID, new_form_id()))
    return visit.render(
        "destructive_action.html",
        # The page is not compressed, because it contains entries of the form, which can be secrets. The size of a compressed page
        # could reveal parts of them.
        compress=False,
        title=question.text,
        question=question,
        back=back,
        fields=kept,
        keeps_entries=keeps_entries,
    )
