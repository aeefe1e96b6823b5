"""/portal/{app}/privacy: the page that erases a person's data and shows how long data is kept.

An erasure takes two steps. The first step counts the messages, so that the operator sees what will be erased. The second step
erases the data and shows a receipt. The receipt contains neither the phone number nor the message_id. The audit log contains one
row for each 100 messages. The sums of these rows equal the numbers of the receipt, so the operator can prove the erasure later.
"""
# Tested by tests/portal/test_privacy.py

from __future__ import annotations

import dataclasses

from starlette.responses import Response

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.gateways.decisions import give_up_erased
from shortener.messages.phone_numbers import PhoneNumberError, parse_number
from shortener.portal.operators import Role
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.retention.erasure import Subject, count_messages, erase_data
from shortener.retention.scrub import ErasureResult

MAX_SUBJECT_CHARACTERS = 255
#: The settings of the installation that determine how long data is kept, each with a description of this data.
KEPT = {
    "hit_retention_days": "Hits: the time, the address and the browser of each request for a link",
    "message_retention_days": "Messages with their phone numbers, links and conversions",
    "event_retention_days": "Events with their finished deliveries and the responses of trackers",
}

KINDS = {"phone": "Phone number", "message_id": "Message id"}


async def privacy(visit: Visit) -> Response:
    """Show the form for an erasure, and how long data is kept."""
    return _page(visit)


def _page(
    visit: Visit,
    status: int = 200,
    *,
    error: ApiError | None = None,
    subject: Subject | None = None,
    messages: int = 0,
    receipt: ErasureResult | None = None,
) -> Response:
    settings = visit.service.settings
    return visit.render(
        "privacy.html",
        status,
        title="Privacy",
        kept=[(text, getattr(settings, name)) for name, text in KEPT.items()],
        address_privacy=(visit.application and visit.application.settings.ip_privacy) or settings.ip_privacy,
        kinds=KINDS,
        error=error,
        subject=subject,
        messages=messages,
        receipt=None if receipt is None else dataclasses.asdict(receipt),
    )


async def erase_person(visit: Visit) -> Response:
    """Show how many messages an erasure would affect, or erase the data."""
    service, application_id = visit.service, visit.application_id
    try:
        subject = _parse_subject(visit.form.get("kind", ""), visit.form.get("subject", "").strip())
        messages = sum((await service.database.read(count_messages, application_id, subject)).values())
        if not messages:
            reason = f"no message of this application has this {'number' if subject.phone else 'id'}"
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("subject", reason)])
    except ApiError as error:
        if error.code is ErrorCode.INVALID_REQUEST:
            return _page(visit, 422, error=error)
        raise
    if visit.form.get("action") != "erase":
        return _page(visit, subject=subject, messages=messages)
    give_up = give_up_erased(service.gateway_dispatcher.writer, service.clock_guard.leases_wait)
    result = await erase_data(service.database, service.cache, application_id, subject, visit.now, visit.audit_writer, give_up)
    return _page(visit, subject=subject, receipt=result)


def _parse_subject(kind: str, text: str) -> Subject:
    """Return whose data is erased. `text` is the phone number or the message_id in the form; `kind` says which of the two. Raise
    ApiError INVALID_REQUEST if the kind or the text is not valid."""
    if kind not in KINDS:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("kind", f"must be one of {', '.join(KINDS)}")])
    if not text or len(text) > MAX_SUBJECT_CHARACTERS:
        raise ApiError(
            ErrorCode.INVALID_REQUEST, details=[Detail("subject", f"must have 1 to {MAX_SUBJECT_CHARACTERS} characters")]
        )
    if kind == "message_id":
        return Subject(message_id=text)
    try:
        return Subject(phone=parse_number(text).e164)
    except PhoneNumberError as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("subject", error.reason)]) from None


PAGES = [
    PortalPage(
        "/portal/{app}/privacy",
        privacy,
        erase_person,
        role=Role.MANAGER,
        all_applications=False,
        navigation=NavigationItem("Privacy", "shield", 40, "setup"),
        needs_recent_password=True,
    ),
]
