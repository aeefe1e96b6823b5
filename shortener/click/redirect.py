"""GET /{code}: the redirect, answered before routing, middleware and templates are reached.

A bare ASGI application. It turns the request into a `Hit`, waits for its landing and answers: 302 with the prepared bytes of
`Location`, 404 for an unknown code, 410 for one that expired or was switched off, 503 with Retry-After when neither the store nor a
read of it works. Prefetchers and previews are redirected like everybody else; the verdict only decides what counts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal

import structlog

from shortener.accounts import Directory
from shortener.click.address import client_address, shorten_address
from shortener.click.page import expired_page, killed_page, unavailable_page, unknown_page
from shortener.click.recorder import UNKNOWN, Hit, Landing, Recorder
from shortener.click.verdict import Request, judge
from shortener.errors import StoreUnavailable
from shortener.ids import IdMaker
from shortener.settings import Network

log = structlog.get_logger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LONGEST_AGENT = 512  # characters of a user agent that are kept

_COMMON = [
    (b"cache-control", b"private, no-store"),
    (b"referrer-policy", b"no-referrer-when-downgrade"),
    (b"x-robots-tag", b"noindex"),
]
_REDIRECT = [*_COMMON, (b"content-length", b"0")]
_PAGE = [
    *_COMMON,
    (b"content-type", b"text/html; charset=utf-8"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
]
_NOTHING = {"type": "http.response.body", "body": b""}
RETRY_AFTER = b"2"


class Redirect:
    def __init__(
        self,
        recorder: Recorder,
        directory: Directory,
        ids: IdMaker,
        now_ms: Callable[[], int],
        *,
        trusted_proxies: tuple[Network, ...],
        ip_privacy: Literal["full", "short", "none"],
    ) -> None:
        self._recorder = recorder
        self._directory = directory
        self._ids = ids
        self._now_ms = now_ms
        self._trusted = trusted_proxies
        self._privacy = ip_privacy
        self._totals = recorder.totals

    async def __call__(self, scope: Scope, send: Send, code: str, domain_id: int | None) -> None:
        """Answer a GET, HEAD or OPTIONS for a code. `domain_id` None: the request came on the default host."""
        method: str = scope["method"]
        agent = forwarded = sec_purpose = purpose = x_purpose = x_moz = b""
        for name, value in scope["headers"]:
            if name == b"user-agent":
                agent = value
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
        user_agent = agent[:LONGEST_AGENT].decode("latin-1")
        judgement = judge(
            Request(
                method,
                user_agent,
                sec_purpose.decode("latin-1"),
                purpose.decode("latin-1"),
                x_purpose.decode("latin-1"),
                x_moz.decode("latin-1"),
            )
        )
        client = scope.get("client")
        address = client_address(client[0] if client else None, forwarded.decode("latin-1"), self._trusted)
        hit = Hit(
            id=self._ids(),
            code=code,
            domain_id=domain_id,
            at=self._now_ms(),
            verdict=judgement.verdict,
            rule=judgement.rule,
            address=shorten_address(address, self._privacy),
            user_agent=user_agent,
            origin=hash(address),
        )
        try:
            landing = await self._recorder.record(hit)
        except StoreUnavailable:
            await self._page(send, method, 503, unavailable_page(), (b"retry-after", RETRY_AFTER))
            return
        if landing is not UNKNOWN:
            judged = (hit.verdict, hit.rule)
            self._totals.verdicts[judged] = self._totals.verdicts.get(judged, 0) + 1
        await self._answer(send, method, landing)

    async def _answer(self, send: Send, method: str, landing: Landing) -> None:
        if landing.location is not None:
            self._totals.answers[302] = self._totals.answers.get(302, 0) + 1
            headers = [*_REDIRECT, (b"location", landing.location)]
            await send({"type": "http.response.start", "status": 302, "headers": headers})
            await send(_NOTHING)
        elif landing.gone:
            application = self._directory.application(landing.application_id)
            page = killed_page if landing.off else expired_page
            await self._page(send, method, 410, page(application.name if application else ""))
        else:
            await self._page(send, method, 404, unknown_page())

    async def _page(self, send: Send, method: str, status: int, page: bytes, *more: tuple[bytes, bytes]) -> None:
        self._totals.answers[status] = self._totals.answers.get(status, 0) + 1
        headers = [*_PAGE, (b"content-length", str(len(page)).encode()), *more]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else page})
