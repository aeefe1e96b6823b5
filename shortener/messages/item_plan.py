"""This module validates the parts of a message that are the same for all its recipients: body, links, expiry, domain, gateway and
callback. `plan_item` returns every problem and raises nothing for an invalid message. The caller passes the time, the limits and
the hosts. `PlanCache` keeps the plans of texts that occur again, because most messages of a campaign have the same text.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol
from urllib.parse import urlsplit

from shortener.accounts.directory import Application, Domain, short_url
from shortener.accounts.gateway_entries import SIMULATOR, GatewayEntry
from shortener.accounts.link_targets import check_link_target
from shortener.errors import Detail, ErrorCode
from shortener.messages.directives import MAX_DIRECTIVES, parse_directives
from shortener.messages.message_warnings import find_warnings
from shortener.messages.rewrite_item import LinkHosts, RewriteItem, RewriteLimits
from shortener.messages.segments import Segments, count_segments
from shortener.messages.sender_rules import check_sender, visible_sender
from shortener.messages.spans import Span, TrackMode, find_spans, replace_spans
from shortener.messages.url_detection import Detection, detect_urls
from shortener.model import record
from shortener.storage.types import to_ms
from shortener.urls import Destination, UrlError, canonical_host, fill_link_path, parse_destination

#: The maximum number of links in one message. The column `first_clicks.links` has one bit for each link of a message.
MAX_LINKS = 30
#: The warning if a request asks the service to send a message, but the application has no gateway.
NOT_SENT = "NOT_SENT: the application has no gateway, so the caller must send the rewritten text"
#: The warning about a message whose request names the simulator, although the application has another gateway.
SIMULATED = "the request names the simulator, which sends nothing and reports the message as delivered"
#: The longest lifetime of links that a request may choose.
MAX_LIFETIME = timedelta(days=3650)
MAX_CACHED_PLANS = 256  # the maximum number of plans that a PlanCache keeps
MAX_CACHED_CHARACTERS = 1600  # plans of longer texts are not kept
REMEMBERED_TEXTS = 2048  # a text counts as repeated if fewer than this many other texts occurred since its last occurrence


@record
class Problem:
    """A reason to reject a rewrite request. `item` is the index of the message in the request, and `recipient` the index of the
    recipient in the message. If `recipient` is None, the problem concerns all recipients of the message."""

    item: int
    code: ErrorCode
    detail: Detail
    recipient: int | None = None

    @property
    def full_detail(self) -> Detail:
        """The error detail of the problem. It contains the indexes of the message and the recipient, and the error code."""
        return replace(self.detail, index=self.item, recipient=self.recipient, code=self.code)


class Reject(Protocol):
    """A function that adds a problem that concerns all recipients of one message. `position` is a position in the body."""

    def __call__(self, code: ErrorCode, field: str, reason: str, position: int | None = None) -> None: ...


@record
class PlannedLink:
    """A short link that will replace a part (span) of the body."""

    span: Span
    destination: Destination
    every_click: bool  # every click creates an event, not only the first click


@record
class ItemPlan:
    """The checked content that all recipients of a message share. No message may be created from a plan with `problems`."""

    track: TrackMode = "directives"
    links: tuple[PlannedLink, ...] = ()
    fallback_location: str | None = None  # the fallback URL as the value of a Location header
    domain_id: int = 0  # the domain of the short links; 0 is the domain of BASE_URL
    base_url: str = ""  # scheme, host and port of the short links
    link_path: str = ""  # the path before the code in a short link
    gateway_id: int | None = None  # the gateway that sends the message; None: the message is not sent
    not_sent: str = NOT_SENT  # the warning if the request asks the service to send the message, but no gateway sends it
    is_simulated_by_request: bool = False  # true if the request names the simulator although the application has another gateway
    warnings: tuple[str, ...] = ()
    segments_without_rewriting: int = 0
    # The number of characters and the size of the body with short links. They do not depend on the codes: all codes of an
    # installation have the same length, and their characters are in the GSM-7 alphabet.
    rewritten_length: int = 0
    rewritten: Segments | None = None
    problems: tuple[Problem, ...] = ()


def _unknown_gateway(application: Application) -> str:
    """Return the reason for rejecting a request that names a gateway which its application may not use. The reason lists the
    gateways that the application may use."""
    known = ", ".join(one.name for one in application.gateways) or "none"
    command = f"`shortener applications update {application.id} --gateway NAME`"
    return (
        f"must be true, or a gateway that the application may use ({known}); a gateway of the installation becomes usable if the "
        f"operator selects it for the application with {command}"
    )


def _not_sent(application: Application) -> str:
    """Return the warning about a message that is not sent."""
    if not application.removed_gateway:
        return NOT_SENT
    return (
        f"NOT_SENT: the gateway {application.removed_gateway!r} of the application was removed, so the caller must send the "
        f"rewritten text, until `shortener applications update {application.id} --gateway NAME` selects another gateway"
    )


def _is_simulated_by_request(application: Application, gateway: GatewayEntry | None) -> bool:
    selected = application.gateway
    return gateway is not None and gateway.kind == SIMULATOR and selected is not None and selected.kind != SIMULATOR


class PlanCache:
    """A cache of plans, for messages with the same content as an earlier message. Plans with problems are not kept.

    A plan is kept only at the second occurrence of its text. Texts that occur once, such as one-time passwords, therefore take
    little time and memory, and do not displace the plan of a campaign. An occurrence counts as the second one if fewer than
    REMEMBERED_TEXTS (2,048) other texts occurred since the first one. The cache has at most MAX_CACHED_PLANS (256) plans of texts
    with at most MAX_CACHED_CHARACTERS (1,600) characters, and drops the plan that has not been used for the longest time. The
    cache needs less than 1 MB for usual texts, and at most about 12 MB.

    The key of a plan contains everything on which the plan depends, and the campaign, so that all messages with one plan have the
    same link sets. The cache does not compare the settings, domains and gateways of an application. It compares the identity of
    the `Application` object, because a changed application is a new object. The cache belongs to one installation, whose limits
    and settings do not change while the process runs. Several threads may use it."""

    def __init__(self, hosts: LinkHosts) -> None:
        self._hosts = hosts
        self._plans: OrderedDict[Hashable, tuple[Application, ItemPlan]] = OrderedDict()
        # The hashes of the texts that occurred. `_latest` replaces `_earlier` when it has REMEMBERED_TEXTS hashes.
        self._latest: set[int] = set()
        self._earlier: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._plans)

    def key(self, application: Application, item: RewriteItem) -> Hashable | None:
        """Return the key under which the plan of a message is kept. Return None if the plan is not kept, because the text is too
        long or occurs for the first time.

        Call this exactly once for each message, because each call records an occurrence of the text. Call it before the plan is
        made: the key contains the version of the hosts, and the hosts may change while the plan is made."""
        if len(item.body) > MAX_CACHED_CHARACTERS:
            return None
        text = hash(item.body)
        if text not in self._latest:
            is_new = text not in self._earlier
            if len(self._latest) >= REMEMBERED_TEXTS:
                self._earlier, self._latest = self._latest, set()
            self._latest.add(text)
            if is_new:
                return None
        return (
            self._hosts.version,
            application.id,
            item.body,
            item.track,
            item.from_address,
            item.sender_id_alias,
            item.campaign,
            item.domain,
            item.gateway,
            item.fallback_url,
            item.callback_url,
        )

    def find(self, application: Application, key: Hashable) -> ItemPlan | None:
        """Return the plan with this key, or None. A plan for an earlier version of the application is not returned."""
        found = self._plans.get(key)
        if found is None or found[0] is not application:
            return None
        if len(self._plans) >= MAX_CACHED_PLANS:  # the order of the plans matters only in a full cache, which drops the first one
            with self._lock:
                if key in self._plans:
                    self._plans.move_to_end(key)
        return found[1]

    def add(self, application: Application, key: Hashable, plan: ItemPlan) -> None:
        """Keep a plan, unless it has problems."""
        if plan.problems:
            return
        with self._lock:
            self._plans[key] = application, plan
            self._plans.move_to_end(key)
            if len(self._plans) > MAX_CACHED_PLANS:
                self._plans.popitem(last=False)


def plan_item(
    application: Application,
    item: RewriteItem,
    index: int,
    now: datetime,
    limits: RewriteLimits,
    hosts: LinkHosts,
    cache: PlanCache | None = None,
) -> tuple[ItemPlan, int]:
    """Check the parts of a message that are the same for all recipients: body, links, expiry, domain, sender and callback. Return
    the plan, and the time at which its links expire, in milliseconds since 1970 (0 if the plan has problems)."""
    problems: list[Problem] = []

    def reject(code: ErrorCode, field: str, reason: str, position: int | None = None) -> None:
        problems.append(Problem(index, code, Detail(item.field_path(field, None), reason, position)))

    expires_at = _plan_expiry(application, item, now, limits, reject)
    key = None if cache is None else cache.key(application, item)
    plan = None if cache is None or key is None or problems else cache.find(application, key)
    if plan is None:
        plan = _plan_content(application, item, limits, hosts, problems, reject)
        if cache is not None and key is not None:
            cache.add(application, key, plan)
    return plan, 0 if problems else to_ms(expires_at)


def _plan_content(
    application: Application,
    item: RewriteItem,
    limits: RewriteLimits,
    hosts: LinkHosts,
    problems: list[Problem],
    reject: Reject,
) -> ItemPlan:
    """Return the plan of a message whose expiry has been checked. `reject` adds a problem to `problems`."""
    settings = application.settings
    track = item.track or settings.track
    # The detection of URLs takes most of the time of planning a long text, so it runs only once.
    detection = None if track == "directives" else detect_urls(item.body)
    links, has_links = _plan_links(application, item, track, detection, hosts, reject)
    if settings.sender_rules == "reject" and item.from_address and (form := check_sender(item.from_address)) is not None:
        reject(ErrorCode.SENDER_NOT_ALLOWED, "from", form)
    domain, link_path = _plan_domain(application, item, hosts, reject, has_links=has_links)
    gateway = None if item.gateway is None else _plan_gateway(application, item.gateway, item.body, reject)
    fallback_location = None
    if item.fallback_url:
        try:
            fallback_location = check_link_target(application, item.fallback_url, hosts).location.decode()
        except UrlError as error:
            reject(ErrorCode.INVALID_REQUEST, "fallback_url", error.reason)
    if item.callback_url:
        _check_callback(item.callback_url, hosts, reject)
    gateway_id = gateway.id if gateway is not None else None
    if problems:
        return ItemPlan(track, gateway_id=gateway_id, problems=tuple(problems))
    spans = [link.span for link in links]
    base_url = domain.base_url if domain else hosts.base_url(0)
    sample = short_url(base_url, link_path, "a" * limits.code_length)
    sample_body = replace_spans(item.body, spans, [sample] * len(links))
    rewritten = count_segments(sample_body)
    unchanged = count_segments(replace_spans(item.body, spans, [link.destination.url for link in links])) if links else rewritten
    return ItemPlan(
        track,
        links=links,
        fallback_location=fallback_location,
        domain_id=domain.id if domain else 0,
        base_url=base_url,
        link_path=link_path,
        gateway_id=gateway_id,
        not_sent=_not_sent(application),
        is_simulated_by_request=_is_simulated_by_request(application, gateway),
        warnings=find_warnings(
            item.body,
            [(link.span, link.destination.host) for link in links],
            item.from_address,
            track=track,
            fallback_url=item.fallback_url,
            callback_url=item.callback_url,
            detection=detection,
        ),
        segments_without_rewriting=unchanged.segments,
        rewritten_length=len(sample_body),
        rewritten=rewritten,
    )


def _plan_expiry(application: Application, item: RewriteItem, now: datetime, limits: RewriteLimits, reject: Reject) -> datetime:
    """Return the time at which the links of a message expire. A lifetime that is longer than the maximum of the application is
    shortened."""
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
        requested = (now + (longest or limits.link_ttl)).replace(microsecond=0)
    return min(requested, now + longest) if longest else requested


def _plan_domain(
    application: Application, item: RewriteItem, hosts: LinkHosts, reject: Reject, *, has_links: bool
) -> tuple[Domain | None, str]:
    """Return the domain of the short links (None for BASE_URL), and the path before their codes."""
    wanted = canonical_host(item.domain.removesuffix("."))
    if wanted and not (wanted == hosts.shared_host and application.may_use_shared_host):
        domain = next((one for one in application.domains if canonical_host(one.host) == wanted), None)
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


def _plan_gateway(application: Application, name: str, body: str, reject: Reject) -> GatewayEntry | None:
    """Return the gateway that sends a message. `name` is its name, or "" for the gateway of the application. Return None if the
    application has no gateway."""
    gateway = application.find_gateway(name)
    if gateway is None and name:
        reject(ErrorCode.INVALID_REQUEST, "gateway", _unknown_gateway(application))
    if gateway is not None and (nul := body.find("\x00")) >= 0:
        # An SMS cannot contain this character. PostgreSQL cannot store it, and the text is stored until a gateway has sent it.
        reject(ErrorCode.INVALID_REQUEST, "body", "must not contain the character NUL if a gateway sends it", nul)
    return gateway


def _check_callback(url: str, hosts: LinkHosts, reject: Reject) -> None:
    try:
        callback = urlsplit(parse_destination(url).location.decode())
    except UrlError as error:
        reject(ErrorCode.INVALID_REQUEST, "lt_callbackurl", error.reason)
        return
    if reason := hosts.callback_rejection(callback.scheme, callback.hostname or ""):
        reject(ErrorCode.FORBIDDEN_TARGET, "lt_callbackurl", reason)


def _plan_links(
    application: Application,
    item: RewriteItem,
    track: TrackMode,
    detection: Detection | None,
    hosts: LinkHosts,
    reject: Reject,
) -> tuple[tuple[PlannedLink, ...], bool]:
    """Return the valid links of a text, and whether the text would have links if all its directives and URLs were valid."""
    directives, errors = parse_directives(item.body)
    # If a directive is malformed, only the URLs of the other directives are checked. The rest of the text is not searched
    # for URLs, because a corrected directive may change which URLs are found.
    spans = find_spans(item.body, "directives" if errors else track, directives, detection)
    always = application.settings.click_events == "every"
    links = []
    problems = [(error.position, ErrorCode.INVALID_TRACK_DIRECTIVE, error.reason) for error in errors]
    if len(spans) > MAX_LINKS and len(directives) <= MAX_DIRECTIVES:  # a text with more directives already has an error
        problems.append((spans[MAX_LINKS].start, ErrorCode.INVALID_TRACK_URL, f"has more than {MAX_LINKS} URLs to track"))
    for span in spans:
        try:
            destination = check_link_target(application, span.url, hosts)
        except UrlError as error:
            problems.append((span.start, ErrorCode.INVALID_TRACK_URL, f"{span.url!r} {error.reason}"))
            continue
        links.append(PlannedLink(span, destination, span.is_trackurl or always))
    for position, code, reason in sorted(problems, key=lambda problem: problem[0]):
        reject(code, "body", reason, position)
    return tuple(links), bool(spans or errors)
