"""/portal/{app}/messages/{id}: the page that shows all events of one message as a timeline."""
# Tested by tests/portal/test_pages.py

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.errors import ApiError, ErrorCode
from shortener.logs import mask
from shortener.model import SendStatus
from shortener.plurals import counted
from shortener.portal import sends
from shortener.portal.formats import money_with_currency
from shortener.portal.messages import STATES
from shortener.portal.operators import Role
from shortener.portal.outcome_texts import delivery_outcome, send_outcome
from shortener.portal.page import PortalPage, Visit
from shortener.portal.verdict_texts import RESULTS, explain
from shortener.reporting.status import MessageStatus, find_status
from shortener.reporting.timeline import message_timeline
from shortener.times import parse_iso


async def message(visit: Visit) -> Response:
    """Show a message with its timeline. Its phone number is masked."""
    return await _show(visit, reveal=False)


async def reveal_number(visit: Visit) -> Response:
    """Show a message with its complete phone number. The audit log records which operator saw the number."""
    return await _show(visit, reveal=True)


async def _show(visit: Visit, *, reveal: bool) -> Response:
    status, entries = await _find(visit)
    if reveal:
        shown = status.message
        await visit.service.database.write(visit.audit, "number_revealed", shown.message_id, recipient=shown.to_address)
    fields = visit.service.status_reader.serialize(status, reveal=reveal)
    return visit.render(
        "message.html",
        title=f"Message to {mask(status.message.to_address)}" if status.message.to_address else "Message",
        message=fields,
        row=status.message,
        is_revealed=reveal,
        may_reveal=visit.may(Role.SUPPORT) and bool(status.message.to_address),
        states=STATES,
        timeline=[_describe(entry) for entry in entries],
        results=RESULTS,
        **_gateway_state(visit, status),
    )


def _gateway_state(visit: Visit, status: MessageStatus) -> dict[str, Any]:
    """Return arguments of the template. `send_state` describes the state of the message at its gateway: a label, the kind of
    badge, and the URL of a list of messages in the same state. `can_decide` is true if the operator may send the message again or
    give it up. `done` is a note about the action that the operator has just performed."""
    if status.send is None:
        return {"send_state": None, "done": None, "can_decide": False}
    row = status.send.row
    text, kind = sends.STATES[row.status]
    undecided = sends.is_undecided(row)
    state = "doubtful" if undecided and row.status == SendStatus.PENDING else SendStatus(row.status).api_name
    return {
        "send_state": (text, kind, visit.link("sends", keep=False, period="365d", state=state)),
        "done": sends.NOTES.get(visit.get("done") or ""),
        "can_decide": undecided and visit.may(Role.MANAGER),
    }


async def _find(visit: Visit) -> tuple[MessageStatus, list[dict[str, Any]]]:
    """Return a message and its timeline, read in one transaction. Raise ApiError MESSAGE_NOT_FOUND."""

    def read(connection: Connection) -> tuple[MessageStatus, list[dict[str, Any]]] | None:
        status = find_status(connection, visit.application_id, visit.name_in_path("id"))
        if status is None:
            return None
        return status, message_timeline(connection, visit.application_id, status, visit.service.click_ids.encode)

    found = await visit.service.database.read(read)
    if found is None:
        raise ApiError(ErrorCode.MESSAGE_NOT_FOUND)
    return found


_STEPS = {
    "created": ("Text rewritten", "", "message-square"),
    "sent": ("Sent", "", "send"),
    "delivered": ("Delivered to the phone", "good", "smartphone"),
    "read": ("Read", "good", "eye"),
    "failed": ("Failed", "bad", "circle-x"),
}
_ATTEMPTS = {"accepted": ("accepted the message", ""), "rejected": ("rejected the message", "bad")}
_DELIVERY_WORDS = {
    "pending": "waits to be sent to a tracker",
    "parked": "waits, because its tracker is disabled",
    "delivered": "was accepted by a tracker",
    "dead": "was not accepted by a tracker",
}
_DELIVERY_KINDS = {"delivered": "good", "dead": "bad"}


def _describe(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the template shows for one entry of the timeline."""
    at: datetime = parse_iso(entry["at"])  # type: ignore[assignment] # `message_timeline` writes complete times
    what = entry["what"]
    if what in _STEPS:
        title, kind, icon = _STEPS[what]
        return {"at": at, "title": title, "text": "", "kind": kind, "icon": icon}
    if what == "hit":
        metric = _metric(entry)
        text, kind = RESULTS[metric]
        title = "First click" if entry["first_of_message"] else text
        kind = "accent" if metric == "clicks" else kind
        return {
            "at": at,
            "title": title,
            "text": explain(entry["rule"], metric) + _earlier(entry),
            "kind": kind,
            "icon": "mouse-pointer-click",
            "code": entry["code"],
            "user_agent": entry["user_agent"],
        }
    if what == "conversion":
        value = "" if entry["value"] is None else money_with_currency(entry["value"], entry["currency"])
        change = "Conversion" if entry["revision"] == 1 else "Conversion changed"
        return {
            "at": at,
            "title": f"{change}: {', '.join(part for part in (entry['action'], entry['status']) if part)}",
            "text": value,
            "kind": {"positive": "good", "negative": "bad"}.get(entry["disposition"], ""),
            "icon": "badge-dollar-sign",
        }
    if what == "attempt":
        title, kind = _ATTEMPTS.get(entry["outcome"], ("did not send the message", "bad"))
        return {
            "at": at,
            "title": f"Gateway {entry['gateway']} {title}",
            "text": f"Attempt {entry['attempt']}: {entry['detail'] or send_outcome(entry['outcome'])}.",
            "kind": kind,
            "icon": "send",
        }
    return {
        "at": at,
        "title": f"Event “{entry['event']}” {_DELIVERY_WORDS[entry['state']]}",
        "text": _delivery_text(entry),
        "kind": _DELIVERY_KINDS.get(entry["state"], ""),
        "icon": "webhook",
    }


def _metric(entry: Mapping[str, Any]) -> str | None:
    """Return the name of the figure that counts this hit, such as `clicks`. Return None if no figure counts it."""
    if entry["late"]:
        return "late_hits"
    if entry["verdict"] != "human":
        return f"{entry['verdict']}_hits"
    return None if entry["disabled"] else "clicks"


def _earlier(entry: Mapping[str, Any]) -> str:
    if entry.get("first_verdict") is None:
        return ""
    return f" Its verdict was {entry['first_verdict']} before ({entry['first_rule']})."


def _delivery_text(entry: Mapping[str, Any]) -> str:
    attempts = entry["attempts"]
    tried = f"{counted(attempts, 'attempt')}"
    outcome = delivery_outcome(entry["last_status"], entry["last_error"])
    return f"To {entry['tracker']}, {tried}{': ' + outcome if outcome else ''}."


PAGES = [
    PortalPage("/portal/{app}/messages/{id:path}", message, post=reveal_number, post_role=Role.SUPPORT, all_applications=False),
]
