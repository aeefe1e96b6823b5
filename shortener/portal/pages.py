"""The list of all pages. To add a page, create a module in this package with a list `PAGES`, and add the module here.

The modules are imported when the portal receives its first request, so that a process that never serves the portal does not load
its libraries.
"""
# Tested by tests/portal/test_router.py

from __future__ import annotations

import importlib
from functools import cache

from shortener.portal.page import PortalPage

#: The modules of pages, in alphabetical order.
MODULES = (
    "admin_applications",
    "admin_audit",
    "admin_operators",
    "admin_system",
    "application_settings",
    "campaigns",
    "clicks",
    "conversions",
    "deliveries",
    "domains",
    "gateways",
    "home",
    "keys",
    "links",
    "live",
    "me",
    "message",
    "messages",
    "open_link",
    "overview",
    "privacy",
    "receiver",
    "replays",
    "search",
    "sends",
    "signin",
    "tracker_editor",
    "trackers",
    "try_it",
    "welcome",
)


@cache
def all_pages() -> tuple[PortalPage, ...]:
    """Return the pages of all modules."""
    found: list[PortalPage] = []
    for name in MODULES:
        found += importlib.import_module(f"shortener.portal.{name}").PAGES
    return tuple(found)
