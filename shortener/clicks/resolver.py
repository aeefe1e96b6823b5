"""This module defines hits and their resolutions. The resolution of a hit is the destination to which its link redirects, or the
reason why there is none.

A resolution depends on the link, its application and its domain. The link may be read from the database or the link cache.

A code is unknown if no link has it, or if it was requested on another domain than the domain of its link. There is one exception:
a link without a domain also works on a domain whose host was formerly the host of BASE_URL. An unknown code redirects to the
fallback URL of the domain if the domain has one. A fallback URL that leads to a host of the installation is not used, because the
redirects could loop.

A link counts as switched off if the link, its domain or its application is disabled, or if the host of its destination is blocked.
Such a link has no destination, even if it has a fallback URL.

This module does no I/O and raises no errors. All data that a resolution needs is in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from shortener.accounts.hit_policies import HitPolicies
from shortener.ids import ClickIds
from shortener.model import LinkFlag, Verdict, mutable_record
from shortener.redirect_locations import append_param, fill_placeholders
from shortener.urls import DESTINATION_PLACEHOLDERS

# The flags are copied to plain integers, because an operation on enum flags takes microseconds, and each hit needs several of
# them.
_FILL = int(LinkFlag.FILL_CLICK_ID)


@mutable_record
class Hit:
    """One request for a code.

    `domain_id` is the domain of the request; None for the default host, where the codes of all domains are valid. `at` is in
    milliseconds since 1970. `address` is the part of the client's IP address that the privacy setting of the installation permits
    to store. `origin` is a keyed hash that identifies the client (`client_address.hash_client`) and is never stored; 0 if the IP
    address is unknown. `country` is the country of the client's IP address, from the network list. `is_redirected` is true if the
    client was redirected before the hit was written to the database."""

    id: int
    code: str
    domain_id: int | None
    at: int
    verdict: Verdict
    rule: str
    address: str
    user_agent: str
    origin: int = 0
    country: str | None = None
    is_redirected: bool = False


class Resolution(NamedTuple):
    """The resolution of a hit. `location` is the URL to which the response redirects (302). If it is None, another field contains
    the reason."""

    location: bytes | None
    application_id: int = 0
    gone: bool = False  # the link is expired or switched off; the response is 410, or 302 to a fallback URL
    off: bool = False  # the link is switched off
    confirm: bool = False  # the response is the confirmation page, on which a person must press a button
    unknown: bool = False  # no link has the code; the response is 404, or 302 to the fallback URL of the domain


CONFIRMED = "confirmed"  # The name of the rule for a click that a person has confirmed by the button of the confirmation page.
# The name of the rule for a hit whose client got the confirmation page, if no other rule suspects the hit.
AWAITING_CONFIRMATION = "awaiting_confirmation"

UNKNOWN_LINK = Resolution(None, unknown=True)


class LinkRecord(Protocol):
    """The properties of a link that determine its resolution, from the database or the link cache. Times are milliseconds since
    1970."""

    @property
    def application_id(self) -> int: ...
    @property
    def domain_id(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def url(self) -> str: ...
    @property
    def location(self) -> str | None: ...
    @property
    def fallback_url(self) -> str | None: ...
    @property
    def expires_at(self) -> int: ...
    @property
    def disabled_at(self) -> int | None: ...


class LinkDirectory(Protocol):
    """The methods of `accounts.directory.Directory` that are necessary to resolve and record hits."""

    @property
    def hit_policies(self) -> HitPolicies: ...
    def fallback_url(self, application_id: int, domain_id: int) -> str | None: ...
    def unknown_code_url(self, domain_id: int) -> str | None: ...
    def is_own(self, url: str) -> bool: ...


class LinkResolver:
    """A resolver that determines the destinations of hits. `click_ids` encodes the id of a hit as a click id, for destinations
    that contain one. `trusted_ms` returns the current time without sudden steps of the clock (storage/clock_guard.py)."""

    def __init__(self, directory: LinkDirectory, click_ids: ClickIds, trusted_ms: Callable[[int], int] = lambda at: at) -> None:
        self._directory = directory
        self._click_ids = click_ids
        self._trusted_ms = trusted_ms

    def is_late(self, at: int, expires_at: int) -> bool:
        """Return whether a link has expired at the time `at`. If the expiry seems to have passed only because of a step of the
        clock, the link has not expired."""
        return at >= expires_at and self._trusted_ms(at) >= expires_at

    def resolve(self, hit: Hit, link: LinkRecord | None, policies: HitPolicies) -> Resolution:
        """Return the resolution of `hit`.

        `link` is the link with the code of the hit; None if no link has it. `policies` are the current `hit_policies` of the
        directory. The caller reads them once per batch."""
        if link is None:
            return self._resolve_unknown(hit)
        is_elsewhere = hit.domain_id is not None and hit.domain_id != link.domain_id
        if is_elsewhere and (link.domain_id or hit.domain_id not in policies.former_base_domains):
            return self._resolve_unknown(hit)
        application_id = link.application_id
        if (
            link.disabled_at is not None
            or application_id in policies.disabled_applications
            or link.domain_id in policies.disabled_domains
            or (policies.blocked_hosts and policies.blocks(application_id, link.location or link.url))
        ):
            return Resolution(None, application_id, gone=True, off=True)
        if hit.at >= link.expires_at and self.is_late(hit.at, link.expires_at):
            fallback = link.fallback_url or self._directory.fallback_url(application_id, link.domain_id)
            # The URL was checked when it was stored. Since then, its host may have been blocked, or may have become a host of the
            # installation.
            if fallback and (policies.blocks(application_id, fallback) or self._directory.is_own(fallback)):
                fallback = None
            return Resolution(self._fill_fallback(fallback, hit) if fallback else None, application_id, gone=True)
        if policies.confirm_clicks:
            mode = policies.confirm_clicks.get(application_id)
            if hit.rule == CONFIRMED:
                if mode is None:
                    return UNKNOWN_LINK
            elif mode == "always" or (mode == "suspicious" and hit.verdict is not Verdict.HUMAN):
                return Resolution(None, application_id, confirm=True)
        location = (link.location or link.url).encode()
        if link.flags & _FILL:
            location = fill_placeholders(location, {"click_id": self._click_ids.encode(hit.id)})
        name = policies.click_id_params.get(application_id) if policies.click_id_params else None
        if name and location.startswith((b"http://", b"https://")):  # A link with an app scheme, such as tel:, has no query.
            location = append_param(location, name, self._click_ids.encode(hit.id))
        return Resolution(location, application_id)

    def _resolve_unknown(self, hit: Hit) -> Resolution:
        url = None if hit.domain_id is None else self._directory.unknown_code_url(hit.domain_id)
        if url is None:
            return UNKNOWN_LINK
        # A hit with an unknown code is not stored, so it has no click id and no message.
        values = dict.fromkeys(DESTINATION_PLACEHOLDERS, "") | {"code": hit.code}
        location = fill_placeholders(url.encode(), values) if "{" in url else url.encode()
        return Resolution(location, unknown=True)

    def _fill_fallback(self, fallback: str, hit: Hit) -> bytes:
        """Return a fallback URL in which the placeholders for values of the hit are replaced. The rewriter or `fallback_values`
        replaces the placeholders for values of the message."""
        location = fallback.encode()
        if b"{" not in location:
            return location
        return fill_placeholders(location, {"click_id": self._click_ids.encode(hit.id), "code": hit.code})
