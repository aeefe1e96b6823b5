"""/portal/{app}/sends: the list of the messages that gateways send, with filters by gateway and state. On it, managers decide
whether a held message is sent again or given up."""
# Tested by tests/portal/test_gateways.py

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.gateways import decisions
from shortener.ids import parse_counted_id
from shortener.model import SendStatus
from shortener.portal.destructive_actions import Question, ask, is_confirmed
from shortener.portal.listing import FilterField, ListedRow, ListSource, choice, show_list, slots_of
from shortener.portal.locations import safe_next
from shortener.portal.operators import Role
from shortener.portal.page import PortalPage, Visit
from shortener.portal.repeats import FormRepeated, perform_once
from shortener.reporting.sends import (
    SendFilter,
    SendListPage,
    find_gateway_send,
    list_gateway_sends,
    own_gateway_names,
    serialize_gateway_send,
)
from shortener.storage.send_conditions import UNFINISHED
from shortener.storage.types import AnyRow

#: The label and the kind of badge that the pages show for each state of a message that a gateway sends.
STATES = {
    SendStatus.PENDING: ("Waiting", ""),
    SendStatus.SENT: ("Sent", "good"),
    SendStatus.FAILED: ("Failed", "bad"),
    SendStatus.HELD: ("Held", "warn"),
}
CSV_COLUMNS = (
    "message_id",
    "to",
    "gateway",
    "send_status",
    "doubtful",
    "attempts",
    "next_attempt_at",
    "last_error",
    "last_status",
    "gateway_message_id",
    "cost",
    "created_at",
    "finished_at",
)
_STATE = FilterField(
    "state", "State", {**{one.api_name: STATES[one][0] for one in SendStatus}, "doubtful": "Doubtful"}, is_common=True
)
#: The actions that an operator can choose, and the note that the page shows after each.
_DONE = {"resend": "The message is sent again as soon as possible.", "discard": "The message is given up."}
#: The notes that the page shows after a form, by the value of the query parameter `done`.
NOTES = _DONE | {"repeated": "This decision was sent before and was carried out then. Nothing was done now."}


async def sends(visit: Visit) -> Response:
    """List the messages of the period that gateways send, newest first. The period refers to the creation of the messages. With
    `numbers=1`, the CSV contains complete phone numbers, and the audit log records this."""
    gateway = await _gateway_field(visit)
    reveal = visit.is_csv and visit.get("numbers") == "1" and visit.may(Role.SUPPORT)
    return await show_list(
        visit,
        "sends.html",
        _source(visit, gateway, reveal=reveal),
        (_STATE, gateway),
        title="Messages of gateways",
        states=STATES,
        done=NOTES.get(visit.get("done") or ""),
        can_decide=visit.application is not None and visit.may(Role.MANAGER),
    )


async def _gateway_field(visit: Visit) -> FilterField:
    """Return the filter field with the gateways that the applications of the page may use. Gateways of the same name are shown
    with their ids. If the query selects a gateway that none of the applications may use any more, it is also a choice."""
    names = await visit.service.database.read(own_gateway_names, [one.id for one in visit.applications])
    for application in visit.applications:
        for one in application.gateways:
            names.setdefault(one.id, one.name)
    repeated = {name for name, number in Counter(names.values()).items() if number > 1}
    choices = {str(number): f"{name} ({number})" if name in repeated else name for number, name in names.items()}
    asked = visit.get("gateway")
    if asked is not None:
        choices.setdefault(asked, asked)
    return FilterField("gateway", "Gateway", choices, is_common=True)


def _source(visit: Visit, gateway: FilterField, *, reveal: bool) -> ListSource:
    since, until = slots_of(visit)
    asked, state = choice(visit, gateway), choice(visit, _STATE)
    gateway_id = None if asked is None else parse_counted_id(asked) or 0

    def read(connection: Connection, application_id: int, limit: int, below: int | None) -> SendListPage:
        # `choice` has already rejected every state that is not in the list.
        filters = SendFilter(application_id, gateway_id, state, since, until)  # type: ignore[arg-type]
        return list_gateway_sends(connection, filters, limit, below)

    def serialize(listed: ListedRow) -> dict[str, Any]:
        return serialize_gateway_send(listed.row, reveal=reveal)

    def describe(page: Any, row: Any) -> dict[str, Any]:
        return {**serialize_gateway_send(row, reveal=False), "is_undecided": is_undecided(row)}

    return ListSource("sends", read, CSV_COLUMNS, serialize, lambda row: row.created_at, describe)


def is_undecided(row: AnyRow) -> bool:
    """Return whether somebody can still decide about a message. This is true in two cases: the message is held, or it is
    doubtful and waits for another attempt."""
    return row.status == SendStatus.HELD or (row.status == SendStatus.PENDING and bool(row.doubtful))


async def decide(visit: Visit) -> Response:
    """Ask for a confirmation. Then send an undecided message again, or give it up."""
    action, message_id = visit.form.get("action", ""), visit.form.get("message", "")
    if action not in _DONE:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("action", "is unknown")])
    back = safe_next(visit.form.get("back"), visit.link("sends"))
    if not is_confirmed(visit):
        row = await visit.service.database.read(find_gateway_send, visit.application_id, message_id)
        if row.status not in UNFINISHED:
            raise decisions.already_finished(row.status)
        return ask(visit, _question(action, row), back)
    write: Callable[[Connection], int] = _resender(visit, message_id) if action == "resend" else _discarder(visit, message_id)
    next_page = f"{back}{'&' if '?' in back else '?'}done="
    try:
        events = await visit.service.database.write(perform_once, visit, write)
    except FormRepeated:
        # The first form was performed, but the state of the message may have changed again since then.
        return visit.redirect(next_page + "repeated")
    dispatcher = visit.service.gateway_dispatcher
    if action == "resend":
        dispatcher.wake_up.notify()
    else:
        dispatcher.writer.published(events)
    return visit.redirect(next_page + action)


def _resender(visit: Visit, message_id: str) -> Callable[[Connection], int]:
    """Return a function that puts a message back into the queue of its gateway. It returns 0, the number of new events."""

    def write(connection: Connection) -> int:
        args = connection, visit.audit_writer, visit.application_id, message_id
        decisions.resend(*args, visit.now, visit.service.clock_guard.leases_wait)
        return 0

    return write


def _discarder(visit: Visit, message_id: str) -> Callable[[Connection], int]:
    """Return a function that gives a message up, so that it is not sent again. It returns the number of new events."""
    writer = visit.service.gateway_dispatcher.writer

    def write(connection: Connection) -> int:
        args = connection, visit.audit_writer, writer, visit.application_id, message_id
        return decisions.discard(*args, visit.now, visit.service.clock_guard.leases_wait)[1]

    return write


def _question(action: str, row: AnyRow) -> Question:
    fields = ("message", "back")
    if action == "resend":
        effects = [f"The gateway {row.gateway} gets the message again as soon as possible."]
        if row.doubtful:
            effects.append("If the gateway has already accepted the message, the recipient gets it twice.")
        return Question(f"Send the message {row.message_id} again?", effects, "Send it again", "rotate-ccw", fields)
    effects = [
        "The message is not sent again. It becomes FAILED, and your trackers get this event.",
        "If its delivery report has arrived, the message keeps the reported state.",
    ]
    if row.cost is not None:
        effects.append(
            f"Its cost of {row.cost:f} is not refunded, because the gateway may have accepted the message."
            if row.doubtful
            else f"Its cost of {row.cost:f} is refunded."
        )
    return Question(f"Give the message {row.message_id} up?", effects, "Give it up", fields=fields)


PAGES = [PortalPage("/portal/{app}/sends", sends, decide, post_role=Role.MANAGER, csv=True)]
