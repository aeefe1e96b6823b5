"""Validation of a rewrite request without the database.

`plan_request` checks a request completely and returns every problem; it raises nothing for an invalid message. `RewriteWriter`
decides later whether a problem rejects the request: a repeated request or message gets its first response even if it would be
invalid today. All functions are pure; the caller passes the time, the limits and the hosts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import orjson

from shortener.accounts.directory import Application, Domain
from shortener.accounts.link_targets import TargetHosts, check_link_target
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import new_message_id
from shortener.messages.directives import parse_directives
from shortener.messages.message_warnings import find_warnings
from shortener.messages.phone_numbers import PhoneNumber, PhoneNumberError, check_sender, parse_number
from shortener.messages.segments import count_segments
from shortener.messages.sender_rules import country_problem, visible_sender
from shortener.messages.spans import Span, TrackMode, find_spans, replace_spans
from shortener.model import record
from shortener.storage.types import to_iso, to_ms
from shortener.urls import Destination, UrlError, fill_link_path, parse_destination

#: The maximum number of links in one message, because the column `first_clicks.links` has one bit for each link of a message.
MAX_LINKS = 30
#: A request may choose a lifetime of links of at most this length.
MAX_LIFETIME = timedelta(days=3650)


@record
class RewriteItem:
    """One message of a rewrite request, for one recipient or several.

    `message_ids` contains one id for each recipient, or None for an id that the service generates. With `skip_invalid`, a
    recipient that is not valid is left out instead of rejecting the request. `field_path(field, recipient)` returns the path
    of a field in the caller's request, for errors; `recipient` is the index of a recipient, or None."""

    to: tuple[str, ...]
    body: str
    message_ids: tuple[str | None, ...] | None = None
    field_path: Callable[[str, int | None], str] = lambda name, recipient: name
    track: TrackMode | None = None  # None: the default of the application
    from_address: str = ""
    sender_id_id: str = ""
    sender_id_alias: str = ""
    request_id: str = ""
    external_request_id: str = ""
    campaign: str = ""
    source: Literal["api", "campaign"] = "api"
    mt_price: Decimal | None = None
    expires_in: int | None = None  # the lifetime of the links in seconds
    expires_at: datetime | None = None
    fallback_url: str | None = None
    callback_url: str | None = None
    metadata: dict[str, Any] | None = None
    domain: str = ""  # the host of an own domain of the application; "" stands for its default domain
    opt_out: tuple[str, ...] = ()  # destinations or labels of opt-out links, by which a recipient refuses further messages
    skip_invalid: bool = False
    skipped_codes: frozenset[ErrorCode] = frozenset()  # a recipient with a problem of these codes is left out too
    gateway: str | None = None  # None: do not send. "": the gateway of the application. Otherwise: the name of a gateway.
    tracking: tuple[str, str] = ("", "")  # track and type (Infobip); messages with the same values share a conversion process

    def skips(self, code: ErrorCode) -> bool:
        """Return whether a recipient with a problem of this code is left out, instead of rejecting the request."""
        return self.skip_invalid or code in self.skipped_codes


@dataclass(frozen=True, slots=True)
class RewriteLimits:
    """Settings of the installation: the maximum number of recipients per request, and the default lifetime of links."""

    max_recipients: int
    link_ttl: timedelta


class LinkHosts(TargetHosts, Protocol):
    """The hosts of the installation, and the hosts that links must not lead to."""

    def callback_rejection(self, scheme: str, host: str) -> str | None:
        """Return why no callback may be sent to a host (without port); None if the host is permitted. Makes no DNS look-up."""
        ...

    def base_url(self, domain_id: int) -> str:
        """Return scheme, host and port of the short links on a domain. The domain id 0 stands for BASE_URL."""
        ...

    @property
    def shared_host(self) -> str:
        """The host of BASE_URL, with the port unless it is the default port of the scheme."""
        ...

    @property
    def shared_path(self) -> str:
        """The path of BASE_URL, which precedes the code in short links; "" if BASE_URL has no path."""
        ...


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason to reject a rewrite request. `item` and `recipient` are the indexes of the message and of its recipient.

    A problem without a recipient concerns all recipients of the message."""

    item: int
    code: ErrorCode
    detail: Detail
    recipient: int | None = None

    @property
    def full_detail(self) -> Detail:
        """The error detail with the index of the message, the index of the recipient, and the error code."""
        return replace(self.detail, index=self.item, recipient=self.recipient, code=self.code)


@record
class PlannedLink:
    """A short link that will replace a span of the body."""

    span: Span
    destination: Destination
    every_click: bool  # every click creates an event, not only the first one


@record
class ItemPlan:
    """The checked content that all recipients of a message share. No message may be created from a plan with `problems`."""

    track: TrackMode = "directives"
    links: tuple[PlannedLink, ...] = ()
    expires_at: int = 0  # ms since 1970
    fallback_location: str | None = None  # in the form of a Location header
    domain_id: int = 0  # 0 stands for BASE_URL
    base_url: str = ""  # scheme, host and port of the short links
    link_path: str = ""  # the path before the code in a short link
    gateway_id: int | None = None  # the gateway that sends the message; None: the message is not sent
    warnings: tuple[str, ...] = ()
    segments_without_rewriting: int = 0
    problems: tuple[Problem, ...] = ()


@record
class PlannedMessage:
    """The planned message for one recipient. `recipient` is the index of the recipient in the `RewriteItem`."""

    item_index: int
    item: RewriteItem
    recipient: int
    number: PhoneNumber
    message_id: str
    has_own_id: bool  # the caller chose the message_id
    request_id: str
    content_hash: str  # a repeated message must have the same hash; empty if the service generated the message_id
    plan: ItemPlan


@record
class PlannedRequest:
    """A checked rewrite request. `now` is its time in ms since 1970.

    `content_hash` is the hash of its content, and `earlier_hash` that of its content in the form of the previous release. Both are
    "" without an `idempotency_key`.

    `error` and `problems` reject the request unless it repeats an Idempotency-Key. The problems of an `ItemPlan` only reject new
    messages. With an `error`, the messages were not checked."""

    application: Application
    items: Sequence[RewriteItem]
    plans: Sequence[ItemPlan]  # one plan for each item
    messages: tuple[PlannedMessage, ...]
    problems: tuple[Problem, ...]
    idempotency_key: str | None
    content_hash: str
    earlier_hash: str
    now: int
    error: ApiError | None = None

    @property
    def may_be_repeat(self) -> bool:
        """Whether the request or one of its messages may be a repeat, so that stored rows must be searched."""
        return self.idempotency_key is not None or any(message.has_own_id for message in self.messages)

    def check(self, new_messages: Sequence[PlannedMessage], other_problems: Sequence[Problem] = ()) -> list[Problem]:
        """Raise ApiError if a problem rejects the request. Return the problems of the items with `skip_invalid`.

        Messages that are not in `new_messages` repeat stored messages. The error has the code of the first problem, and the details
        of all problems in request order, followed by `other_problems`."""
        if self.error is not None:
            raise self.error
        problems = [*self._problems_of(new_messages), *other_problems]
        rejecting = [problem for problem in problems if not self.items[problem.item].skips(problem.code)]
        if rejecting:
            raise ApiError(rejecting[0].code, details=[problem.full_detail for problem in rejecting])
        return problems

    def all_problems(self) -> list[Problem]:
        """Return all problems in request order. Every message counts as new."""
        return self._problems_of(self.messages)

    def _problems_of(self, new_messages: Sequence[PlannedMessage]) -> list[Problem]:
        """Return the problems of all recipients, and the problems of each item with a new message or an invalid recipient."""
        if not self.problems and not any(plan.problems for plan in self.plans):
            return []
        items = {message.item_index for message in new_messages} | {problem.item for problem in self.problems}
        problems = [*self.problems, *(problem for item in sorted(items) for problem in self.plans[item].problems)]
        return sorted(problems, key=lambda problem: problem.item)


def plan_request(
    application: Application,
    items: Sequence[RewriteItem],
    *,
    idempotency_key: str | None,
    content: bytes,
    earlier_content: bytes = b"",
    now: datetime,
    limits: RewriteLimits,
    hosts: LinkHosts,
) -> PlannedRequest:
    """Check a rewrite request, and return its plan with all problems.

    `content` is the content that a repeat with the same Idempotency-Key must have. `earlier_content` is the same in the form of the
    previous release."""
    content_hash = earlier_hash = ""
    if idempotency_key is not None:
        content_hash, earlier_hash = (hashlib.sha256(one).hexdigest() for one in (content, earlier_content))
    recipients = sum(len(item.to) for item in items)
    if recipients > limits.max_recipients:
        description = f"The request has {recipients} recipients; at most {limits.max_recipients} are permitted."
        error = ApiError(ErrorCode.BATCH_TOO_LARGE, description)
        return PlannedRequest(application, items, (), (), (), idempotency_key, content_hash, earlier_hash, to_ms(now), error)
    messages: list[PlannedMessage] = []
    problems: list[Problem] = []
    used_ids: set[str] = set()
    plans = [_plan_item(application, item, index, now, limits, hosts) for index, item in enumerate(items)]
    for index, item in enumerate(items):
        messages += _identify(application, item, index, plans[index], used_ids, problems)
    return PlannedRequest(
        application, items, plans, tuple(messages), tuple(problems), idempotency_key, content_hash, earlier_hash, to_ms(now)
    )


def _identify(
    application: Application, item: RewriteItem, item_index: int, plan: ItemPlan, used_ids: set[str], problems: list[Problem]
) -> list[PlannedMessage]:
    """Return a planned message for each valid recipient. Add a problem for each invalid recipient and message_id."""

    def reject(code: ErrorCode, name: str, reason: str, recipient: int | None = None) -> None:
        problems.append(Problem(item_index, code, Detail(item.field_path(name, recipient), reason), recipient))

    if not item.to:
        reject(ErrorCode.INVALID_RECIPIENT, "to", "must contain at least one recipient")
    numbers: dict[int, PhoneNumber] = {}
    for index, to in enumerate(item.to):
        try:
            numbers[index] = parse_number(to)
        except PhoneNumberError as error:
            reject(ErrorCode.INVALID_RECIPIENT, "to", error.reason, index)
    sender = item.from_address
    if application.settings.sender_rules == "reject" and sender:
        if (form := check_sender(sender)) is not None:
            reject(ErrorCode.SENDER_NOT_ALLOWED, "from", form)
        problems_of_countries = (country_problem(sender, number.country) for number in numbers.values())
        for problem in dict.fromkeys(found for found in problems_of_countries if found is not None):
            reject(ErrorCode.SENDER_NOT_ALLOWED, "from", problem)
    message_ids = item.message_ids or (None,) * len(item.to)
    if len(message_ids) != len(item.to):
        reason = f"must contain one id for each of the {len(item.to)} recipients; it has {len(message_ids)}"
        reject(ErrorCode.INVALID_REQUEST, "message_id", reason)
        return []
    for index, message_id in enumerate(message_ids):
        if message_id is None:
            continue
        if message_id in used_ids:
            reject(ErrorCode.INVALID_REQUEST, "message_id", f"{message_id!r} is used twice in this request", index)
        used_ids.add(message_id)

    content = _content_of(item) if any(message_ids) else b""
    request_id = item.request_id or new_message_id()
    return [
        PlannedMessage(
            item_index=item_index,
            item=item,
            recipient=index,
            number=number,
            message_id=message_ids[index] or new_message_id(),
            has_own_id=message_ids[index] is not None,
            request_id=request_id,
            content_hash=hashlib.sha256(content + number.e164.encode()).hexdigest()[:32] if message_ids[index] else "",
            plan=plan,
        )
        for index, number in numbers.items()
    ]


def _plan_item(
    application: Application, item: RewriteItem, index: int, now: datetime, limits: RewriteLimits, hosts: LinkHosts
) -> ItemPlan:
    """Check the parts of a message that are equal for all recipients: body, links, expiry, domain, sender and callback."""
    problems: list[Problem] = []

    def reject(code: ErrorCode, name: str, reason: str, position: int | None = None) -> None:
        problems.append(Problem(index, code, Detail(item.field_path(name, None), reason, position)))

    settings = application.settings
    track = item.track or settings.track
    expires_at = _plan_expiry(application, item, now, limits, reject)
    links = _plan_links(application, item, track, hosts, reject)
    domain, link_path = _plan_domain(application, item, hosts, reject, has_links=bool(links))
    gateway = None
    if item.gateway is not None:
        gateway = application.find_gateway(item.gateway)
        if gateway is None and item.gateway:
            known = ", ".join(one.name for one in application.gateways) or "none"
            reject(ErrorCode.INVALID_REQUEST, "gateway", f"must be a gateway that the application may use ({known})")
    fallback_location = None
    if item.fallback_url:
        try:
            fallback_location = check_link_target(application, item.fallback_url, hosts).location.decode()
        except UrlError as error:
            reject(ErrorCode.INVALID_REQUEST, "fallback_url", error.reason)
    if item.callback_url:
        try:
            callback = urlsplit(parse_destination(item.callback_url).location.decode())
        except UrlError as error:
            reject(ErrorCode.INVALID_REQUEST, "lt_callbackurl", error.reason)
        else:
            if reason := hosts.callback_rejection(callback.scheme, callback.hostname or ""):
                reject(ErrorCode.FORBIDDEN_TARGET, "lt_callbackurl", reason)
    if problems:
        return ItemPlan(track, problems=tuple(problems))
    spans = [link.span for link in links]
    return ItemPlan(
        track,
        links=links,
        expires_at=to_ms(expires_at),
        fallback_location=fallback_location,
        domain_id=domain.id if domain else 0,
        base_url=domain.base_url if domain else hosts.base_url(0),
        link_path=link_path,
        gateway_id=gateway.id if gateway is not None else None,
        warnings=find_warnings(
            item.body,
            [(link.span, link.destination.host) for link in links],
            item.from_address,
            track=track,
            fallback_url=item.fallback_url,
        ),
        segments_without_rewriting=count_segments(
            replace_spans(item.body, spans, [link.destination.url for link in links])
        ).segments,
    )


def _plan_expiry(
    application: Application, item: RewriteItem, now: datetime, limits: RewriteLimits, reject: Callable[..., None]
) -> datetime:
    """Return the time at which the links expire. A lifetime above the maximum of the application is shortened."""
    days = application.settings.link_ttl_days
    longest = timedelta(days=days) if days else None
    if item.expires_at is not None and item.expires_in is not None:
        reject(ErrorCode.INVALID_REQUEST, "expires_at", "must not be combined with expires_in")
    if item.expires_at is not None:
        requested = item.expires_at
        if requested <= now:
            reject(ErrorCode.INVALID_REQUEST, "expires_at", "must be in the future")
        elif requested > now + MAX_LIFETIME:
            reject(ErrorCode.INVALID_REQUEST, "expires_at", f"must be at most {MAX_LIFETIME.days} days in the future")
            requested = now + MAX_LIFETIME
    elif item.expires_in is not None:
        requested = now + timedelta(seconds=item.expires_in)
    else:
        requested = now + (longest or limits.link_ttl)
    return min(requested, now + longest) if longest else requested


def _plan_domain(
    application: Application, item: RewriteItem, hosts: LinkHosts, reject: Callable[..., None], *, has_links: bool
) -> tuple[Domain | None, str]:
    """Return the domain of the short links (None for BASE_URL), and the path before their codes."""
    wanted = item.domain.lower().removesuffix(".")
    if wanted and not (wanted == hosts.shared_host and application.may_use_shared_host):
        domain = next((one for one in application.domains if one.host == wanted), None)
        if domain is None:
            own = ", ".join(one.host for one in application.domains) or "none"
            reject(ErrorCode.INVALID_REQUEST, "domain", f"must be the host of an own domain of the application ({own})")
            return None, ""
        if domain.disabled:
            reject(ErrorCode.NO_USABLE_DOMAIN, "domain", f"{domain.host} is disabled")
            return None, ""
    else:
        domain = None if wanted else application.domain
    if domain is None and not wanted and has_links and not application.may_use_shared_host:
        reject(ErrorCode.NO_USABLE_DOMAIN, "domain", "no own domain of the application is enabled, and allow_shared_host is false")
        return None, ""
    path = hosts.shared_path if domain is None else domain.path
    if path and has_links:
        try:
            path = fill_link_path(path, visible_sender(item.from_address, item.sender_id_alias))
        except UrlError as error:
            reject(ErrorCode.INVALID_REQUEST, "from", error.reason)
    return domain, path


def _plan_links(
    application: Application, item: RewriteItem, track: TrackMode, hosts: LinkHosts, reject: Callable[..., None]
) -> tuple[PlannedLink, ...]:
    directives, errors = parse_directives(item.body)
    for error in errors:
        reject(ErrorCode.INVALID_TRACK_DIRECTIVE, "body", error.reason, error.position)
    if errors:
        return ()
    spans = find_spans(item.body, track, directives)
    if len(spans) > MAX_LINKS:
        reason = f"has more than {MAX_LINKS} URLs to track"
        reject(ErrorCode.INVALID_TRACK_URL, "body", reason, spans[MAX_LINKS].start)
        return ()
    always = application.settings.click_events == "every"
    links = []
    for span in spans:
        try:
            destination = check_link_target(application, span.url, hosts)
        except UrlError as error:
            reject(ErrorCode.INVALID_TRACK_URL, "body", f"{span.url!r} {error.reason}", span.start)
            continue
        links.append(PlannedLink(span, destination, span.is_trackurl or always))
    return tuple(links)


def _content_of(item: RewriteItem) -> bytes:
    """Return all fields of a message, except ids and recipients, as bytes for its content hash.

    Content hashes are stored, so this format must not change."""
    try:
        expires_at = to_iso(item.expires_at)
    except OverflowError:  # a time at the end of the year 9999 that UTC cannot represent; `_plan_expiry` rejects it
        expires_at = str(item.expires_at)
    content = (
        item.body,
        item.track or "directives",
        item.from_address,
        item.sender_id_id,
        item.sender_id_alias,
        item.external_request_id,
        item.campaign,
        item.source,
        None if item.mt_price is None else format(item.mt_price.normalize(), "f"),
        item.expires_in,
        expires_at,
        item.fallback_url,
        item.callback_url,
        item.metadata,
        item.tracking,
        *([item.domain] if item.domain else []),
        *([item.opt_out] if item.opt_out else []),  # older releases had no such field, and their hashes must stay equal
        *([("gateway", item.gateway)] if item.gateway is not None else []),
    )
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
