"""This module responds to GET /{code} without routing, middleware or templates. It makes a `Hit` of the request. When the
resolution of the hit is known, the response is 302 with the header Location, 404 for an unknown code, or 410 for a link that is
expired or switched off. After many unknown codes, a client gets 429 instead of 404. The response is 503 with Retry-After if the
database can neither store the hit nor read the link. Prefetchers and link previews get the same response as people; the verdict
only determines whether a hit counts as a click.

`Redirect` is an ASGI application. `server/http_protocol.py` does not use the ASGI interface: it calls `read_client_info`,
`make_hit` and `respond` directly, without a task and without ASGI messages.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Literal, NamedTuple

import structlog

from shortener.accounts.directory import Directory
from shortener.clicks.client_address import address_ranges, address_text, find_client, hash_packed, stored_address
from shortener.clicks.networks import Networks
from shortener.clicks.pages import (
    confirmation_page,
    expired_page,
    switched_off_page,
    too_many_requests_page,
    unavailable_page,
    unknown_page,
)
from shortener.clicks.recorder import Recorder
from shortener.clicks.resolver import CONFIRMED, Hit, Resolution
from shortener.clicks.verdicts.request_rules import RequestTraits, classify, classify_agent
from shortener.errors import StoreUnavailable
from shortener.ids import IdGenerator
from shortener.model import Verdict
from shortener.redis.rate_limit import RateLimiter
from shortener.settings import Network

log = structlog.get_logger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_STORED_AGENT_LENGTH = 512  # maximum number of characters of a user agent that are stored

#: The names of the request headers that this module reads.
_HEADERS = frozenset(
    {b"host", b"user-agent", b"x-forwarded-for", b"sec-purpose", b"purpose", b"x-purpose", b"x-moz", b"x-request-id"}
)

_COMMON_HEADERS = [
    (b"cache-control", b"private, no-store"),
    (b"referrer-policy", b"no-referrer-when-downgrade"),
    (b"x-robots-tag", b"noindex"),
]
#: The headers of every 302 response, except Location.
REDIRECT_HEADERS = [*_COMMON_HEADERS, (b"content-length", b"0")]
_PAGE_HEADERS = [
    *_COMMON_HEADERS,
    (b"content-type", b"text/html; charset=utf-8"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
]
#: The headers of the confirmation page. The Content-Security-Policy has no form-action: browsers would also apply it to the
#: redirect that follows when the form is sent.
_CONFIRMATION_HEADERS = [
    *_PAGE_HEADERS[:-1],
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    ),
]
RETRY_AFTER_SECONDS = b"2"
#: The value of `ClientInfo.host` for a request with several Host headers, which must get the response 400 (RFC 9112). The value
#: cannot be a real host, because no host contains a comma.
AMBIGUOUS_HOST = b","

#: An HTTP response as a tuple of status, headers and body.
RawResponse = tuple[int, list[tuple[bytes, bytes]], bytes]


class ClientInfo(NamedTuple):
    """The properties of the client that the request headers contain, and the verdict of the request rules."""

    host: bytes
    user_agent: str
    verdict: Verdict
    rule: str
    forwarded: str  # the value of X-Forwarded-For; "" if the header is missing
    request_id: bytes = b""  # the value of X-Request-Id, not checked yet


def read_client_info(method: str, headers: Iterable[tuple[bytes, bytes]]) -> ClientInfo:
    """Read the request headers and classify the request by them.

    The names of the headers must be in lower case. If the request has several Host headers, the host of the result is
    AMBIGUOUS_HOST."""
    host: bytes | None = None
    agent = forwarded = sec_purpose = purpose = x_purpose = x_moz = request_id = b""
    for name, value in headers:
        if name not in _HEADERS:
            continue
        if name == b"user-agent":
            agent = value
        elif name == b"host":
            host = value if host is None else AMBIGUOUS_HOST
        elif name == b"x-forwarded-for":
            forwarded = forwarded + b", " + value if forwarded else value
        elif name == b"sec-purpose":
            sec_purpose = value
        elif name == b"purpose":
            purpose = value
        elif name == b"x-purpose":
            x_purpose = value
        elif name == b"x-moz":
            x_moz = value
        else:
            request_id = value
    user_agent = agent[:MAX_STORED_AGENT_LENGTH].decode("latin-1")
    # Only the user agent rules can match a GET request without these headers, so the other rules are skipped.
    if method == "GET" and not (sec_purpose or purpose or x_purpose or x_moz):
        classification = classify_agent(user_agent)
    else:
        purposes = (one.decode("latin-1") for one in (sec_purpose, purpose, x_purpose, x_moz))
        classification = classify(RequestTraits(method, user_agent, *purposes))
    return ClientInfo(host or b"", user_agent, classification.verdict, classification.rule, forwarded.decode("latin-1"), request_id)


class Redirect:
    """The ASGI application that responds to requests for codes.

    `limiter` limits the number of unknown codes that a client may request. `client_key` is the key for
    `client_address.hash_client`.
    """

    def __init__(
        self,
        recorder: Recorder,
        directory: Directory,
        ids: IdGenerator,
        now_ms: Callable[[], int],
        *,
        limiter: RateLimiter,
        client_key: bytes,
        trusted_proxies: tuple[Network, ...],
        ip_privacy: Literal["full", "short", "none"],
        networks: Networks | None = None,
        logs_access: bool = False,
    ) -> None:
        self.recorder = recorder
        self._directory = directory
        self._ids = ids
        self._now_ms = now_ms
        self._limiter = limiter
        self._client_key = client_key
        self._trusted_proxies = address_ranges(trusted_proxies)
        self._ip_privacy = ip_privacy
        self._networks = networks
        self._totals = recorder.totals
        #: The function that returns the response to a hit and counts its verdict and status. With ACCESS_LOG it also writes a log
        #: line. The third argument is the X-Request-Id for this log line, or b"" if all log lines of the request contain it
        #: anyway.
        self.respond: Callable[[Hit, Resolution, bytes], RawResponse] = self._respond_and_log if logs_access else self._respond

    async def __call__(self, scope: Scope, send: Send, code: str, domain_id: int | None) -> None:
        """Respond to a GET, HEAD or OPTIONS request for a code, or to the POST request of a confirmation page.

        `domain_id` is the id of the domain of the request; None for the default host."""
        client = scope.get("client")
        is_post = scope["method"] == "POST"
        client_info = read_client_info("GET" if is_post else scope["method"], scope["headers"])
        # A POST counts as a confirmation unless the browser says that the form was sent from another web site.
        if is_post and (b"sec-fetch-site", b"cross-site") not in scope["headers"]:
            client_info = client_info._replace(verdict=Verdict.HUMAN, rule=CONFIRMED)
        hit = self.make_hit(client_info, client[0] if client else None, code, domain_id)
        try:
            resolution = await self.recorder.record(hit)
        except StoreUnavailable:
            status, headers, body = self.unavailable()
        else:
            status, headers, body = self.respond(hit, resolution, b"")
            if is_post and status == 302:
                status = 303  # 303 See Other: the browser continues with GET
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def make_hit(self, client_info: ClientInfo, peer: str | None, code: str, domain_id: int | None) -> Hit:
        """Return a new hit with a new id and the current time. `peer` is the IP address of the other end of the connection."""
        _, user_agent, verdict, rule, forwarded, _ = client_info
        client = find_client(peer, forwarded, self._trusted_proxies)
        address = "" if client is None else stored_address(client, self._ip_privacy)
        country = None
        if self._networks is not None:
            full_address = "" if client is None else address_text(client)
            country = self._networks.find(full_address).country
            if rule != CONFIRMED:
                verdict, rule = self._networks.classify(full_address, verdict, rule)
        origin = hash_packed(client, self._client_key)
        return Hit(self._ids(), code, domain_id, self._now_ms(), verdict, rule, address, user_agent, origin, country)

    def _respond_and_log(self, hit: Hit, resolution: Resolution, request_id: bytes) -> RawResponse:
        response = self._respond(hit, resolution, request_id)
        verdict, rule = ("none", "unknown_code") if resolution.unknown else (hit.verdict.api_name, hit.rule)
        milliseconds = max(self._now_ms() - hit.at, 0)
        more = {"request_id": request_id.decode()} if request_id else {}
        log.info("click", code=hit.code, status=response[0], verdict=verdict, rule=rule, milliseconds=milliseconds, **more)
        return response

    def _respond(self, hit: Hit, resolution: Resolution, request_id: bytes) -> RawResponse:
        totals = self._totals
        if not resolution.unknown:
            key = (hit.verdict, hit.rule)
            totals.verdicts[key] = totals.verdicts.get(key, 0) + 1
        elif wait := self._limiter.take(hit.origin):
            return self._page_response(429, too_many_requests_page(), (b"retry-after", b"%d" % wait))
        elif resolution.location is not None:
            totals.unknown_redirected += 1
        if resolution.location is not None:
            totals.answers[302] = totals.answers.get(302, 0) + 1
            return 302, [*REDIRECT_HEADERS, (b"location", resolution.location)], b""
        application = self._directory.application(resolution.application_id)
        if resolution.confirm:
            page = confirmation_page(application.public_name if application else "")
            totals.answers[200] = totals.answers.get(200, 0) + 1
            return 200, [*_CONFIRMATION_HEADERS, (b"content-length", str(len(page)).encode())], page
        if resolution.gone:
            page_of = switched_off_page if resolution.off else expired_page
            return self._page_response(410, page_of(application.public_name if application else ""))
        return self._page_response(404, unknown_page())

    def unavailable(self) -> RawResponse:
        """Return the 503 response to a hit that could not be stored and whose link could not be read. Count the response."""
        return self._page_response(503, unavailable_page(), (b"retry-after", RETRY_AFTER_SECONDS))

    def _page_response(self, status: int, page: bytes, *extra_headers: tuple[bytes, bytes]) -> RawResponse:
        self._totals.answers[status] = self._totals.answers.get(status, 0) + 1
        return status, [*_PAGE_HEADERS, (b"content-length", str(len(page)).encode()), *extra_headers], page
