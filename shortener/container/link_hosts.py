"""This module decides which hosts the links and callback URLs of messages may have."""

from __future__ import annotations

from shortener.accounts.directory import Directory, base_url_of
from shortener.accounts.own_hosts import OwnHosts
from shortener.delivery.guard import ForbiddenTarget, Guard
from shortener.settings import Settings
from shortener.urls import host_of


class InstallationHosts:
    """The hosts of the installation and the blocked hosts, for the rewriter. It implements `messages.rewrite_item.LinkHosts`."""

    def __init__(self, settings: Settings, directory: Directory) -> None:
        self._directory = directory
        # The hosts of the service itself come from the settings, because a directory that a command has opened does not contain
        # them.
        self._own_hosts = OwnHosts.of(settings)
        self._guard = Guard(settings.allow_private_targets)
        self._allow_http = settings.allow_http_targets
        self.base_url = base_url_of(settings, directory)
        self.shared_host, self.shared_path = host_of(settings.base_url), settings.base_path

    @property
    def version(self) -> str:
        return self._directory.version

    def is_own(self, url: str) -> bool:
        return self._directory.is_own(url) or self._own_hosts.contains(url)

    def callback_rejection(self, scheme: str, host: str) -> str | None:
        if scheme != "https" and not self._allow_http:
            return "must begin with https://; http:// is disabled (ALLOW_HTTP_TARGETS)"
        try:
            self._guard.check_literal(host)
        except ForbiddenTarget as error:
            return str(error)
        return None

    def is_blocked(self, application_id: int, host: str) -> bool:
        return self._directory.hit_policies.blocks_host(application_id, host)
