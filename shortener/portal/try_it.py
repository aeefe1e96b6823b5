"""/portal/{app}/try: the page *Try it*. An operator writes a text, sees how the service rewrites it, and can create a real
message with it.

The preview stores nothing. *Create the message* calls the same rewrite as the API, so the short link works. The page shows a QR
code with the short link; opening it on a phone counts as a click. The message is only sent if the application has a gateway.

If the operator reloads the page with the result, the browser sends the form again. The message_id is computed from the form, so
no second message is created and the page shows the first message again.
"""
# Tested by tests/portal/test_try_it.py

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response

import shortener.messages.rewriter  # noqa: F401 - `service.rewriter` needs it. Here it is imported in a thread.
from shortener.accounts.gateway_entries import SIMULATOR
from shortener.delivery.dns_warnings import has_address
from shortener.errors import ApiError, ErrorCode
from shortener.messages.rewrite_item import RewriteItem
from shortener.messages.segments import count_segments
from shortener.model import record
from shortener.portal.operators import Role
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.qr_codes import qr_code
from shortener.portal.repeats import form_hash, new_form_id, perform_once

MAX_BODY = 2000  # The maximum number of characters of a text.
MAX_RECIPIENTS_SHOWN = 10_000_000
SAMPLE = 'Your order is on its way. Follow it here: #track("https://shop.example/orders/1001")'
#: The phone number of the sample recipient. It is reserved for fiction in North America.
SAMPLE_NUMBER = "+14085550100"
#: The sample sender, for applications whose short links contain the sender. It is a number, because networks in the sample
#: recipient's country do not deliver messages whose sender is a name.
SAMPLE_SENDER = "14085550199"
CAMPAIGN = "try it"
#: The labels of the form fields. The keys are the field names in error details.
LABELS = {"body": "Text", "to": "Recipient", "from": "Sender"}


async def form(visit: Visit) -> Response:
    """Show the form of the page *Try it* with a sample text and its preview. If no preview is possible, for example because the
    application has no usable domain, the page says why. Its status is 200, because the operator has made no mistake yet."""
    fields = {"body": SAMPLE, "to": SAMPLE_NUMBER, "from": ""}
    try:
        return _page(visit, fields, await _preview(visit, fields), None)
    except ApiError:
        fields["from"] = SAMPLE_SENDER
    try:
        return _page(visit, fields, await _preview(visit, fields), None)
    except ApiError as error:
        return _page(visit, {**fields, "from": ""}, None, error, 200)


async def submit(visit: Visit) -> Response:
    """Show the preview of the rewritten text, or create the message."""
    fields = {name: visit.form.get(name, "") for name in ("body", "to", "from", "recipients")}
    gateway = "" if visit.form.get("send") == "1" else None
    application = visit.one_application
    if visit.form.get("action") != "create":
        try:
            return _page(visit, fields, await _preview(visit, fields, gateway), None)
        except ApiError as error:
            return _page(visit, fields, None, error)
    if not visit.may(Role.MANAGER):
        raise ApiError(ErrorCode.FORBIDDEN, "Your role does not allow this. It requires the role manager.")
    try:
        (created,) = await visit.service.rewriter.rewrite(
            application, [_item(fields, gateway=gateway, message_id=_message_id(visit))]
        )
    except ApiError as error:
        return _page(visit, fields, None, error)
    await _audit(visit, created["message_id"])
    hosts = {link["short_url"]: urlsplit(link["short_url"]).hostname or "" for link in created["links"]}
    # a host with a colon is an IPv6 address, which needs no DNS record
    reachable = {host: _is_loopback(host) or ":" in host or await has_address(host) for host in set(hosts.values())}
    links = [
        _CreatedLink(
            address, qr_code(address, f"QR code of {address}"), host, is_local=_is_loopback(host), has_address=reachable[host]
        )
        for address, host in hosts.items()
    ]
    is_simulated = application.gateway is not None and application.gateway.kind == SIMULATOR
    return visit.render("try_created.html", title="Try it", message=created, links=links, is_simulated=is_simulated)


def _message_id(visit: Visit) -> str | None:
    """Return the id of the message that the form creates. It is computed from the form, so it is the same if the form is sent
    again. Like random message ids, it has 22 characters. Return None if the form has no `form_id`."""
    key = form_hash(visit)
    return None if key is None else key[:22]


async def _audit(visit: Visit, message_id: str) -> None:
    """Add the audit row about a created message. Do nothing if the same form was already handled."""
    after = {"campaign": CAMPAIGN}
    try:
        await visit.service.database.write(perform_once, visit, visit.audit, "message_created", message_id, after=after)
    except ApiError as error:
        if error.code is not ErrorCode.CONFLICT:
            raise


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


@record
class _CreatedLink:
    """A short link of the message. `is_local`: only this machine can open the host, for example localhost. `has_address`: the DNS
    has an address for the host."""

    address: str
    code: Any
    host: str
    is_local: bool
    has_address: bool


def _item(fields: Mapping[str, str], *, gateway: str | None, message_id: str | None = None) -> RewriteItem:
    return RewriteItem(
        to=(fields["to"].strip() or SAMPLE_NUMBER,),
        body=fields["body"].replace("\r\n", "\n")[:MAX_BODY],
        from_address=fields["from"].strip(),
        campaign=CAMPAIGN,
        gateway=gateway,
        message_ids=None if message_id is None else (message_id,),
    )


async def _preview(visit: Visit, fields: Mapping[str, str], gateway: str | None = None) -> Mapping[str, Any]:
    """Return the message in the form as a rewrite would return it. Raise ApiError if a field is rejected."""
    application = visit.one_application
    (shown,) = await visit.service.rewriter.preview(application, [_item(fields, gateway=gateway)])
    return shown


def _page(
    visit: Visit, fields: Mapping[str, str], preview: Mapping[str, Any] | None, error: ApiError | None, error_status: int = 422
) -> Response:
    template = "try_result.html" if visit.is_fragment else "try.html"
    application = visit.one_application
    return visit.render(
        template,
        error_status if error is not None and not visit.is_fragment else 200,
        title="Try it",
        fields={"recipients": "", **fields},
        preview=preview,
        left=None if preview is None else _left(preview["body"]),
        error=error,
        labels=LABELS,
        recipients=_recipients(fields.get("recipients", "")),
        has_gateway=application.find_gateway("") is not None,
        may_create=visit.may(Role.MANAGER),
        max_body=MAX_BODY,
        form_id=new_form_id(),
    )


def _left(body: str) -> int:
    """Return how many characters can be added to a text before it needs another SMS segment."""
    segments = count_segments(body).segments
    added = 0
    while count_segments(body + "x" * (added + 1)).segments == segments:
        added += 1
    return added


def _recipients(text: str) -> int | None:
    digits = text.replace(",", "").replace(" ", "").replace("'", "")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 8):
        return None
    return int(digits) if int(digits) <= MAX_RECIPIENTS_SHOWN else None


PAGES = [
    PortalPage(
        "/portal/{app}/try",
        form,
        submit,
        post_role=Role.VIEWER,
        all_applications=False,
        navigation=NavigationItem("Try it", "flask-conical", 10, "tools", "y"),
    ),
]
