"""The rules for the URLs to which a short link redirects: its destination and its fallback URL.

A rewrite and a later change of a link use the same rules. The application permits schemes besides http and https (`extra_schemes`).
A macro that the service will not replace is an error if the setting `strict_destinations` is on, and a warning otherwise.
"""
# Tested by tests/web/test_links.py and tests/messages/test_plan.py

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from shortener.accounts.directory import Application
from shortener.macros import macro_problems, url_warnings
from shortener.urls import DESTINATION_PLACEHOLDERS, Destination, UrlError, parse_destination

#: A function that parses a URL. Its latest results are cached, because the messages of a campaign usually have the same
#: destinations.
_parse = lru_cache(maxsize=1024)(parse_destination)


class TargetHosts(Protocol):
    """The hosts of the installation, and the blocked hosts. A link must not redirect to any of them."""

    def is_own(self, url: str) -> bool:
        """Return whether the host of a URL belongs to the installation. A short link with this destination would redirect in a
        loop."""
        ...

    def is_blocked(self, application_id: int, host: str) -> bool:
        """Return whether a host (lower case, punycode) is blocked for the application."""
        ...


def check_link_target(application: Application, url: str, hosts: TargetHosts) -> Destination:
    """Return the parsed destination or fallback URL of a link. Raise UrlError if the rules do not permit it."""
    destination = _parse(url, application.settings.extra_schemes)
    if hosts.is_own(destination.url):
        raise UrlError("leads to a host of this service, so the redirect would loop")
    if hosts.is_blocked(application.id, destination.host):
        raise UrlError("leads to a blocked host")
    if application.settings.strict_destinations and (problems := target_problems(url)):
        raise UrlError(problems[0])
    return destination


def target_warnings(url: str) -> list[str]:
    """Return the warnings about a destination or fallback URL: it contains `&amp;`, or macros that the service will not
    replace."""
    return url_warnings(url, DESTINATION_PLACEHOLDERS)


def target_problems(url: str) -> list[str]:
    """Return one text for each macro in a destination or fallback URL that the service will not replace."""
    return macro_problems(url, DESTINATION_PLACEHOLDERS)


def spellings_of(url: str) -> tuple[str, ...]:
    """Return the forms in which the database may contain the destination `url`. A filter searches for all of them. The first form
    is the normalized URL. If the host is an IPv6 address, the second form is the unchanged `url`, because earlier versions did
    not normalize these addresses. If `url` is not a valid URL, the only form is the unchanged text."""
    try:
        stored = parse_destination(url).url
    except UrlError:
        return (url,)
    return (stored, url) if "://[" in url and stored != url else (stored,)
