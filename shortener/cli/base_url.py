"""The check that phones can open the short links of an installation without the setting BASE_URL."""

from __future__ import annotations

from shortener.settings import Settings, is_loopback


def unreachable_links(settings: Settings) -> str | None:
    """Return an error text if other machines can reach the service, but BASE_URL is not set: short links would then begin with a
    loopback address, which no phone can open. Otherwise return None."""
    if not settings.has_default_base_url:
        return None
    if not is_loopback(settings.host):
        reason = f"HOST={settings.host} accepts requests from other machines"
    elif settings.trusted_proxies:
        reason = "TRUSTED_PROXIES is set, so a reverse proxy forwards requests from other machines"
    else:
        return None
    return f"BASE_URL is not set. {reason}, but short links would begin with {settings.base_url}, which no phone can open."
