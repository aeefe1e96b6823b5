"""Helpers for tests of rewriting: an application, fixed hosts, and functions that plan a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from shortener.accounts.directory import Application, Domain
from shortener.accounts.settings import ApplicationSettings
from shortener.errors import ApiError
from shortener.messages.plan import PlannedMessage, PlannedRequest, plan_request
from shortener.messages.rewrite_item import RewriteItem, RewriteLimits
from tests.conftest import NOON

TO = "+14085550100"
BASE_URL = "https://go.example"
LIMITS = RewriteLimits(max_recipients=10, link_ttl=NOON - NOON.replace(month=8), code_length=9)
LINK = '#track("https://x.example/")'


def application(application_id: int = 1, domains: tuple[Domain, ...] = (), **settings: Any) -> Application:
    return Application(application_id, "test", None, ApplicationSettings(**settings), NOON, False, domains)


@dataclass
class Hosts:
    """`LinkHosts` with fixed values: own URL prefixes, blocked hosts, and base URLs by domain id."""

    own: tuple[str, ...] = (BASE_URL,)
    blocked: set[str] = field(default_factory=set)
    base_urls: Mapping[int, str] = field(default_factory=dict)
    shared_host: str = "go.example"
    shared_path: str = ""
    version: str = "1"

    def is_own(self, url: str) -> bool:
        return url.startswith(self.own)

    def callback_rejection(self, scheme: str, host: str) -> str | None:
        return "must not be private" if host == "private.example" else None

    def is_blocked(self, application_id: int, host: str) -> bool:
        return host in self.blocked

    def base_url(self, domain_id: int) -> str:
        return self.base_urls.get(domain_id, BASE_URL)


def item(body: str = LINK, to: str | tuple[str, ...] = TO, **fields: Any) -> RewriteItem:
    return RewriteItem((to,) if isinstance(to, str) else to, body, **fields)


def plan(
    *items: RewriteItem,
    application: Application | None = None,
    hosts: Hosts | None = None,
    key: str | None = None,
    content: bytes = b"",
    **more: Any,
) -> PlannedRequest:
    """Plan a rewrite request at the time NOON. The default application and hosts have no settings. Return the plan."""
    return plan_request(
        application or _APPLICATION,
        items,
        idempotency_key=key,
        content=content,
        **{"now": NOON, "limits": LIMITS, "hosts": hosts or Hosts(), **more},
    )


_APPLICATION = application()


def only(planned_item: RewriteItem, **more: Any) -> PlannedMessage:
    request = plan(planned_item, **more)
    request.check(request.messages)
    (message,) = request.messages
    return message


def rejection(*items: RewriteItem, **more: Any) -> ApiError:
    request = plan(*items, **more)
    with pytest.raises(ApiError) as raised:
        request.check(request.messages)
    return raised.value


def reason(planned_item: RewriteItem, **more: Any) -> tuple[str, str]:
    (detail,) = rejection(planned_item, **more).details
    return detail.field, detail.reason
