"""GET /portal/{app}/messages: the list of messages. Its filters include the state, the campaign, the phone number, and the figure
of another page that counts the messages."""
# Tested by tests/portal/test_pages.py

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.messages.phone_numbers import PhoneNumberError, parse_searched_number
from shortener.model import State
from shortener.portal.clicks import country_of
from shortener.portal.listing import FilterField, ListedRow, ListSource, campaign_of, choice, show_list, slots_of
from shortener.portal.operators import Role
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.reporting.messages import MessageFilter, MessagePage, list_messages, serialize_message

METRICS: dict[str, str] = {
    "messages": "All messages",
    "sent": "Sent",
    "delivered": "Delivered",
    "read": "Read",
    "failed": "Failed or expired",
    "clicked_messages": "Clicked",
    "converted_messages": "With a conversion",
}
#: The label and the kind of badge that the page shows for each state of a message.
STATES = {
    State.CREATED.name: ("Created", ""),
    State.SENT.name: ("Sent", ""),
    State.FAILED.name: ("Failed", "bad"),
    State.EXPIRED.name: ("Expired", "bad"),
    State.DELIVERED.name: ("Delivered", "good"),
    State.READ.name: ("Read", "good"),
    State.CLICKTHRU.name: ("Clicked", "accent"),
}
CSV_COLUMNS = (
    "message_id",
    "to",
    "from",
    "campaign",
    "source",
    "country",
    "state",
    "report_status",
    "reason_code",
    "reason_description",
    "created_at",
    "sent_at",
    "delivered_at",
    "read_at",
    "failed_at",
    "clicked_at",
    "encoding",
    "segments",
    "mt_price",
)
_METRIC = FilterField("metric", "Show", METRICS, is_common=True)
_TO = FilterField("to", "Phone number with country code", is_common=True)
_STATE = FilterField("state", "State now", {name: label for name, (label, _) in STATES.items()})
FIELDS = (
    _METRIC,
    FilterField("campaign", "Campaign", is_common=True),
    _TO,
    _STATE,
    FilterField("country", "Country of the number (code)"),
    FilterField("destination", "Destination (host and path)"),
    FilterField("label", "Label"),
    FilterField("source", "Source", {"api": "API", "campaign": "Campaign"}),
)


async def messages(visit: Visit) -> Response:
    """List messages, newest first. With `numbers=1`, the CSV contains complete phone numbers, and the audit log records this.

    Only operators who may see complete phone numbers can search for a number. For other operators, numbers are masked, and a
    search could confirm a guessed number."""
    may_search = visit.may(Role.SUPPORT)
    if visit.get("to") is not None and not may_search:
        raise ApiError(
            ErrorCode.FORBIDDEN, f"Your role does not allow a search by number. It requires the role {Role.SUPPORT.label}."
        )
    fields = FIELDS if may_search else tuple(one for one in FIELDS if one is not _TO)
    reveal = visit.is_csv and visit.get("numbers") == "1" and may_search
    source = _source(visit, reveal=reveal)
    return await show_list(visit, "messages.html", source, fields, title="Messages", states=STATES, metrics=METRICS)


def _source(visit: Visit, *, reveal: bool) -> ListSource:
    since, until = slots_of(visit)
    metric, state, number = choice(visit, _METRIC), choice(visit, _STATE), _number(visit)

    def read(connection: Connection, application_id: int, limit: int, below: int | None) -> MessagePage:
        filters = MessageFilter(
            application_id,
            state=None if state is None else State[state],
            to=number,
            campaign=campaign_of(visit),
            source=visit.get("source"),
            country=country_of(visit),
            destination=visit.get("destination"),
            label=visit.get("label"),
            since=since,
            until=until,
            metric=metric or "messages",  # type: ignore[arg-type] # `choice` has already rejected every name that is not a metric
            basis=visit.period.basis,
        )
        return list_messages(connection, filters, limit, below)

    def serialize(listed: ListedRow) -> dict[str, Any]:
        return serialize_message(listed.row, reveal=reveal)

    def describe(page: Any, row: Any) -> dict[str, Any]:
        return serialize_message(row, reveal=False)

    return ListSource("messages", read, CSV_COLUMNS, serialize, lambda row: row.created_at, describe)


def _number(visit: Visit) -> str | None:
    """Return the phone number that the query selects, in E.164. Raise ApiError INVALID_REQUEST if it is not valid."""
    text = visit.get("to")
    if text is None:
        return None
    try:
        return parse_searched_number(text)
    except PhoneNumberError:
        raise ApiError(
            ErrorCode.INVALID_REQUEST, details=[Detail("to", "must be a number with its country code, such as +14085550100")]
        ) from None


PAGES = [
    PortalPage(
        "/portal/{app}/messages", messages, csv=True, navigation=NavigationItem("Messages", "message-square", 20, key="m", phone=2)
    )
]
