"""Hits and where they lead: what a request for a code is, and what it is answered with.

A landing is made from what is known of the link, whether the database or the cache told it, and of its application and domain. A
code that no link has, and one that was asked for on another application's domain, is `UNKNOWN_LINK`. A link that was switched off,
itself or with its domain, its application or the host of its destination, leads nowhere, also when it has a fallback.

Nothing is looked up here and nothing waits: what a landing needs is in memory when it is made. Raises nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from shortener.accounts.directory import HitPolicies
from shortener.ids import ClickIds
from shortener.model import LinkFlag, Verdict
from shortener.urls import append_param, fill

# Plain numbers: flags of the enum module cost microseconds each, on every hit.
_FILL, _APPEND = int(LinkFlag.FILL_CLICK_ID), int(LinkFlag.APPEND_CLICK_ID)


@dataclass(slots=True)
class Hit:
    """One request for a code. `domain_id` None: came on the default host, where every code counts. `at`: ms since 1970."""

    id: int
    code: str
    domain_id: int | None
    at: int
    verdict: Verdict
    rule: str
    address: str
    user_agent: str
    origin: int = 0  # tells addresses apart in the memory of this process; means nothing outside of it


class Resolution(NamedTuple):
    """Where a hit leads: a `location` (302), or none of it and the reason why."""

    location: bytes | None
    application_id: int = 0
    gone: bool = False  # expired or switched off: 410, or 302 when there is a fallback
    off: bool = False  # switched off


UNKNOWN_LINK = Resolution(None)


class LinkRecord(Protocol):
    """What is known of a link, wherever it was read: as much as a landing needs."""

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


class Places:
    """What a landing and a record need to know of applications and domains; `accounts.Directory` behind three questions."""

    def __init__(
        self,
        fallback: Callable[[int, int], str | None],
        click_id_param: Callable[[int], str | None],
        hit_policies: Callable[[], HitPolicies],
    ) -> None:
        self.fallback = fallback  # (application, domain) -> URL for expired links
        self.click_id_param = click_id_param  # application -> parameter name
        self.hit_policies = hit_policies


class LinkResolver:
    """Tells where hits lead. `click_ids`: spells the id of a hit for the destination that wants it."""

    def __init__(self, places: Places, click_ids: ClickIds) -> None:
        self._places = places
        self._click_ids = click_ids

    def resolution(self, hit: Hit, target: LinkRecord | None, hit_policies: HitPolicies) -> Resolution:
        """`target`: what the hit's code leads to, None when no link has it; `hit_policies`: what the places say now."""
        if target is None or (hit.domain_id is not None and hit.domain_id != target.domain_id):
            return UNKNOWN_LINK
        application_id = target.application_id
        if (
            target.disabled_at is not None
            or application_id in hit_policies.disabled_applications
            or target.domain_id in hit_policies.disabled_domains
            or (hit_policies.blocked_hosts and hit_policies.blocks(application_id, target.location or target.url))
        ):
            return Resolution(None, application_id, gone=True, off=True)
        if hit.at >= target.expires_at:
            fallback = target.fallback_url or self._places.fallback(application_id, target.domain_id)
            if fallback and hit_policies.blocks(application_id, fallback):
                fallback = None
            return Resolution(fallback.encode() if fallback else None, application_id, gone=True)
        location = (target.location or target.url).encode()
        flags = target.flags
        if flags & _FILL:
            location = fill(location, {"click_id": self._click_ids.encode(hit.id)})
        if flags & _APPEND:
            name = self._places.click_id_param(application_id)
            if name:
                location = append_param(location, name, self._click_ids.encode(hit.id))
        return Resolution(location, application_id)
