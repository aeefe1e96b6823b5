"""The hit policies: the settings, trackers, blocked hosts and domains that affect hits. Redirects read the policies from memory
(`directory.py`)."""

# Tested by tests/accounts/test_administration.py and tests/clicks/test_resolver.py

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from sqlalchemy import Connection, select

from shortener.accounts.settings import ApplicationSettings, Privacy
from shortener.model import ALL_APPLICATIONS, Topic, record
from shortener.storage import schema
from shortener.urls import canonical_name, embedded_ipv4


@record
class HitPolicies:
    """The settings, trackers, blocked hosts and domains that affect hits. Settings that equal the defaults are left out. In most
    installations, all fields are empty.

    The keys of mappings and the elements of sets are application ids, unless the name or the comment of a field says
    otherwise."""

    # Settings of the applications with at least one contextual rule, by application id.
    contextual_rules: Mapping[int, ApplicationSettings] = field(default_factory=dict)
    every_click: frozenset[int] = frozenset()  # Ids of the applications with the setting `click_events: every`.
    # The name of the query parameter for the click id, by application id.
    click_id_params: Mapping[int, str] = field(default_factory=dict)
    with_suspected: frozenset[int] = frozenset()  # Ids of the applications with a tracker that receives suspected hits.
    ip_privacy: Mapping[int, Privacy] = field(default_factory=dict)
    # Blocked hosts by application id; the key ALL_APPLICATIONS contains the hosts that are blocked for every application.
    blocked_hosts: Mapping[int, frozenset[str]] = field(default_factory=dict)
    disabled_applications: frozenset[int] = frozenset()
    disabled_domains: frozenset[int] = frozenset()
    # Ids of the domains whose host was formerly the host of BASE_URL. Links that begin with the former BASE_URL still work on
    # these domains.
    former_base_domains: frozenset[int] = frozenset()
    confirm_clicks: Mapping[int, Literal["suspicious", "always"]] = field(default_factory=dict)

    def blocks(self, application_id: int, url: str) -> bool:
        """Return whether the host of a URL is blocked for the application. `url` has the form of a Location header."""
        return bool(self.blocked_hosts) and self.blocks_host(application_id, _host_in(url))

    def blocks_host(self, application_id: int, host: str) -> bool:
        """Return whether a host is blocked for the application. `host` is in lower case and punycode, without a port and
        brackets.

        An IPv4 address and the IPv6 addresses that contain it (`embedded_ipv4`) count as one host."""
        if ":" in host:
            host = embedded_ipv4(host) or host
        for owner in (ALL_APPLICATIONS, application_id):
            hosts = self.blocked_hosts.get(owner)
            if hosts and (host in hosts or any(f"*.{parent}" in hosts for parent in _parents(host))):
                return True
        return False


def read_hit_policies(
    connection: Connection,
    settings: Mapping[int, ApplicationSettings],
    disabled_applications: frozenset[int],
    disabled_domains: frozenset[int],
    former_base_domains: frozenset[int],
) -> HitPolicies:
    """Return the policies of the installation. `settings` are the settings of all applications, by id. The trackers and the blocked
    hosts are read from the database."""
    t = schema.trackers.c
    with_suspected = connection.execute(select(t.application_id, t.topics).where(t.with_suspected.is_(True)))
    blocked: dict[int, set[str]] = {}
    for row in connection.execute(select(schema.blocked_hosts)):
        blocked.setdefault(row.application_id, set()).add(_blocked_name(row.host))
    return HitPolicies(
        contextual_rules={id_: chosen for id_, chosen in settings.items() if chosen.uses_contextual_rules},
        every_click=frozenset(id_ for id_, chosen in settings.items() if chosen.click_events == "every"),
        click_id_params={id_: chosen.click_id_param for id_, chosen in settings.items() if chosen.click_id_param},
        with_suspected=frozenset(row.application_id for row in with_suspected if row.topics & Topic.CLICK),
        ip_privacy={id_: chosen.ip_privacy for id_, chosen in settings.items() if chosen.ip_privacy is not None},
        blocked_hosts={id_: frozenset(hosts) for id_, hosts in blocked.items()},
        disabled_applications=disabled_applications,
        disabled_domains=disabled_domains,
        former_base_domains=former_base_domains,
        confirm_clicks={id_: chosen.confirm_clicks for id_, chosen in settings.items() if chosen.confirm_clicks != "off"},
    )


def _host_in(url: str) -> str:
    _, has_authority, rest = url.partition("//")
    if not has_authority:  # A link into an app, such as tel:+14155550100, has no host.
        return ""
    authority = rest.partition("/")[0].partition("?")[0].partition("#")[0]
    # IPv6 addresses are compared in canonical form, because earlier versions stored them in links as they were entered.
    return canonical_name(authority[1:].partition("]")[0]) if authority.startswith("[") else authority.partition(":")[0]


def _blocked_name(host: str) -> str:
    """Return a stored blocked host in the form that `HitPolicies.blocks_host` compares."""
    return embedded_ipv4(host) or canonical_name(host)


def _parents(host: str) -> list[str]:
    labels = host.split(".")
    return [".".join(labels[index:]) for index in range(1, len(labels))]
