from __future__ import annotations

import pytest

from shortener.accounts.administration import add_domain
from shortener.container import Service
from tests.conftest import MakeService


async def test_the_host_of_base_url_and_the_domains_of_applications_are_hosts_of_the_installation(service: Service) -> None:
    await service.database.write(add_domain, 1, "https://go.brand.example", service.clock())
    await service.directory.refresh()
    assert service.link_hosts.is_own("http://127.0.0.1:8000/aB3dE5f")
    assert service.link_hosts.is_own("https://go.brand.example/aB3dE5f")
    assert not service.link_hosts.is_own("https://shop.example/")


@pytest.mark.parametrize(
    ("settings", "scheme", "host", "rejection"),
    [
        ({}, "https", "shop.example", None),
        ({}, "http", "shop.example", None),
        ({"allow_http_targets": False}, "http", "shop.example", "must begin with https://"),
        ({"allow_private_targets": False}, "https", "10.0.0.1", "must have a public address"),
    ],
)
async def test_a_callback_url_is_rejected_if_its_scheme_or_its_address_is_not_allowed(
    make_service: MakeService, settings: dict[str, bool], scheme: str, host: str, rejection: str | None
) -> None:
    service = await make_service(**settings)
    reason = service.link_hosts.callback_rejection(scheme, host)
    assert (reason is None) if rejection is None else (reason is not None and rejection in reason)
