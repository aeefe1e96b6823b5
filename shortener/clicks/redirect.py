"""GET /{code}: the redirect, answered before routing, middleware and templates are reached.

It turns the request into a `Hit`, waits for its landing and answers: 302 with the prepared bytes of `Location`, 404 for an unknown
code, 410 for one that expired or was switched off, 503 with Retry-After when neither the store nor a read of it works. Prefetchers
and previews are redirected like everybody else; the verdict only decides what counts.

`Redirect` is a bare ASGI application. Its parts, `read_client_info`, `hit` and `answer`, are also called by what reads requests
off the
wire (`shortener/server/http_protocol.py`), which needs no task and no messages between them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import structlog

from shortener.accounts.directory import Directory
from shortener.clicks.client_address import client_address, shorten_address
from shortener.clicks.pages import expired_page, killed_page, unavailable_page, unknown_page
from shortener.clicks.recorder import Recorder
from shortener.clicks.resolver import UNKNOWN_LINK, Hit, Resolution
from shortener.clicks.verdicts.request_rules import RequestTraits, classify
from shortener.errors import StoreUnavailable
from shortener.ids import IdGenerator
from shortener.model import Verdict
from shortener.settings import Network

log = structlog.get_logger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LONGEST_AGENT = 512  # characters of a user agent that are kept
_REMEMBERED = 8_192  # addresses, with what a proxy said of them
_LONGEST_FORWARDED = 128  # characters of that; what is longer is not worth remembering

#: What is read of a request.
_HEADERS = frozenset({b"host", b"user-agent", b"x-forwarded-for", b"sec-purpose", b"purpose", b"x-purpose", b"x-moz"})

_COMMON = [
    (b"cache-control", b"private, no-store"),
    (b"referrer-policy", b"no-referrer-when-downgrade"),
    (b"x-robots-tag", b"noindex"),
]
REDIRECT = [*_COMMON, (b"content-length", b"0")]
_PAGE = [
    *_COMMON,
    (b"content-type", b"text/html; charset=utf-8"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
]
RETRY_AFTER = b"2"

#: Headers and body of an answer, with its status.
RawResponse = tuple[int, list[tuple[bytes, bytes]], bytes]


class ClientInfo(NamedTuple):
    """Who asks, as far as headers tell."""

    host: bytes
    user_agent: str
    verdict: Verdict
    rule: str
    forwarded: str  # X-Forwarded-For, "" for none


def read_client_info(method: str, headers: Iterable[tuple[bytes, bytes]]) -> ClientInfo:
    """Names of headers are lower case; of several Host headers the first counts, as in `HttpApplication`."""
    host: bytes | None = None
    agent = forwarded = sec_purpose = purpose = x_purpose = x_moz = b""
    for name, value in headers:
        if name not in _HEADERS:
            continue
        if name == b"user-agent":
            agent = value
        elif name == b"host":
            host = value if host is None else host
        elif name == b"x-forwarded-for":
            forwarded = forwarded + b", " + value if forwarded else value
        elif name == b"sec-purpose":
            sec_purpose = value
        elif name == b"purpose":
            purpose = value
        elif name == b"x-purpose":
            x_purpose = value
        else:
            x_moz = value
    user_agent = agent[:LONGEST_AGENT].decode("latin-1")
    judgement = classify(
        RequestTraits(
            method,
            user_agent,
            sec_purpose.decode("latin-1"),
            purpose.decode("latin-1"),
            x_purpose.decode("latin-1"),
            x_moz.decode("latin-1"),
        )
    )
    return ClientInfo(host or b"", user_agent, judgement.verdict, judgement.rule, forwarded.decode("latin-1"))


class Redirect:
    def __init__(
        self,
        recorder: Recorder,
        directory: Directory,
        ids: IdGenerator,
        now_ms: Callable[[], int],
        *,
        trusted_proxies: tuple[Network, ...],
        ip_privacy: Literal["full", "short", "none"],
    ) -> None:
        self.recorder = recorder
        self._directory = directory
        self._ids = ids
        self._now_ms = now_ms
        self._trusted = trusted_proxies
        self._privacy = ip_privacy
        self._totals = recorder.totals
        self._remembered_address = lru_cache(maxsize=_REMEMBERED)(self._address)

    async def __call__(self, scope: Scope, send: Send, code: str, domain_id: int | None) -> None:
        """Answer a GET, HEAD or OPTIONS for a code. `domain_id` None: the request came on the default host."""
        client = scope.get("client")
        hit = self.hit(read_client_info(scope["method"], scope["headers"]), client[0] if client else None, code, domain_id)
        try:
            resolution = await self.recorder.record(hit)
        except StoreUnavailable:
            answer = self.refusal()
        else:
            answer = self.answer(hit, resolution)
        status, headers, body = answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def hit(self, client_info: ClientInfo, peer: str | None, code: str, domain_id: int | None) -> Hit:
        """The hit that a request is. `peer`: the other end of the connection."""
        _, user_agent, verdict, rule, forwarded = client_info
        look_up = self._remembered_address if len(forwarded) <= _LONGEST_FORWARDED else self._address
        address, origin = look_up(peer, forwarded)
        return Hit(self._ids(), code, domain_id, self._now_ms(), verdict, rule, address, user_agent, origin)

    def _address(self, peer: str | None, forwarded: str) -> tuple[str, int]:
        """What is kept of a client's address, and what it is told by as long as the process lives."""
        address = client_address(peer, forwarded, self._trusted)
        return shorten_address(address, self._privacy), hash(address)

    def answer(self, hit: Hit, resolution: Resolution) -> RawResponse:
        """What a hit is answered; counted here."""
        totals = self._totals
        if resolution is not UNKNOWN_LINK:
            judged = (hit.verdict, hit.rule)
            totals.verdicts[judged] = totals.verdicts.get(judged, 0) + 1
        if resolution.location is not None:
            totals.answers[302] = totals.answers.get(302, 0) + 1
            return 302, [*REDIRECT, (b"location", resolution.location)], b""
        if resolution.gone:
            application = self._directory.application(resolution.application_id)
            page = killed_page if resolution.off else expired_page
            return self._page(410, page(application.name if application else ""))
        return self._page(404, unknown_page())

    def refusal(self) -> RawResponse:
        """The answer to a hit that could be neither recorded nor read."""
        return self._page(503, unavailable_page(), (b"retry-after", RETRY_AFTER))

    def _page(self, status: int, page: bytes, *more: tuple[bytes, bytes]) -> RawResponse:
        self._totals.answers[status] = self._totals.answers.get(status, 0) + 1
        return status, [*_PAGE, (b"content-length", str(len(page)).encode()), *more], page
