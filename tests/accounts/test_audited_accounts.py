"""Tests of the rows that changes of applications, domains and blocked hosts add to the audit log."""

from __future__ import annotations

from typing import Any

import pytest

from shortener.accounts import audited_accounts
from shortener.accounts.audit import COMMAND_LINE, Actor, AuditWriter
from shortener.accounts.own_hosts import OwnHosts
from shortener.container import Service
from shortener.errors import ApiError, ErrorCode
from shortener.ids import IdGenerator
from shortener.model import ALL_APPLICATIONS
from tests.conftest import NOON
from tests.factory import audited_rows

KEY = AuditWriter(Actor(name="key 5"), IdGenerator(1))


async def logged(service: Service) -> list[tuple[str, str, Any, Any]]:
    """Return action, subject and values of each row of the audit log."""
    return [(row.action, row.object, row.before, row.after) for row in await audited_rows(service.database)]


async def test_each_kind_of_change_of_an_application_has_its_own_audit_row_and_an_unchanged_value_none(
    service: Service,
) -> None:
    changes = {"name": "Shop", "disabled": True, "click_events": "every", "company_id": 7}
    for _ in range(2):
        await service.database.write(audited_accounts.update_application, KEY, 1, changes, NOON)
    assert await logged(service) == [
        ("application_renamed", "default", {"name": "default"}, {"name": "Shop"}),
        ("application_disabled", "default", {"disabled": False}, {"disabled": True}),
        (
            "settings_changed",
            "default",
            {"company_id": None, "click_events": "first"},
            {"company_id": 7, "click_events": "every"},
        ),
    ]


async def test_the_audit_rows_of_a_domain_contain_its_host_as_it_is_stored_and_the_changed_values(service: Service) -> None:
    write, update = service.database.write, audited_accounts.update_domain
    host = await write(audited_accounts.add_domain, KEY, 1, "https://GO.Brand.example.:443/ABC/", NOON)
    for changes in ({"default": True}, {"disabled": False}, {"disabled": True}, {"path": "", "disabled": False}):
        assert await write(update, KEY, host.upper(), changes, NOON) == host == "go.brand.example"
    await write(audited_accounts.remove_domain, KEY, "GO.brand.example", NOON)
    assert await logged(service) == [
        ("domain_added", host, None, {"base_url": "https://go.brand.example:443/ABC"}),
        ("domain_made_default", host, {"default": False}, {"default": True}),
        ("domain_disabled", host, {"disabled": False}, {"disabled": True}),
        ("domain_changed", host, {"path": "/ABC", "disabled": True}, {"path": "", "disabled": False}),
        ("domain_removed", host, None, None),
    ]
    assert {row.application_id for row in await audited_rows(service.database)} == {1}


async def test_a_host_that_is_blocked_already_adds_no_audit_row(service: Service) -> None:
    for owner in (1, 1, ALL_APPLICATIONS):
        await service.database.write(audited_accounts.block_host, KEY, owner, "BAD.example", NOON)
    await service.database.write(audited_accounts.unblock_host, KEY, 1, "bad.example", NOON)
    assert [(row.action, row.object, row.application_id) for row in await audited_rows(service.database)] == [
        ("host_blocked", "bad.example", 1),
        ("host_blocked", "bad.example", None),
        ("host_unblocked", "bad.example", 1),
    ]


@pytest.mark.parametrize("url", ["https://go.example", "https://GO.example.:8443/", "https://portal.example"])
async def test_the_host_of_base_url_or_portal_url_cannot_be_a_domain(service: Service, url: str) -> None:
    settings = service.settings.model_copy(update={"base_url": "https://go.example/s", "portal_url": "https://portal.example"})
    own_hosts = OwnHosts.of(settings)
    with pytest.raises(ApiError) as caught:
        await service.database.write(audited_accounts.add_domain, KEY, 1, url, NOON, own_hosts=own_hosts)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert "on which the service itself responds" in caught.value.details[0].reason
    with pytest.raises(ApiError):
        await service.database.write(audited_accounts.create_application, KEY, "x", NOON, domain=url, own_hosts=own_hosts)
    assert await logged(service) == []
    assert await service.database.write(audited_accounts.add_domain, KEY, 1, "https://brand.go.example", NOON, own_hosts=own_hosts)


async def test_two_ways_to_write_an_ipv6_address_are_one_domain_and_one_blocked_host(service: Service) -> None:
    write = service.database.write
    assert await write(audited_accounts.add_domain, KEY, 1, "https://[2001:DB8:0::0:1]:8443", NOON) == "[2001:db8::1]:8443"
    with pytest.raises(ApiError) as caught:
        await write(audited_accounts.add_domain, KEY, 1, "https://[2001:db8::1]:8443", NOON)
    assert caught.value.code is ErrorCode.CONFLICT
    await write(audited_accounts.update_domain, KEY, "[2001:DB8:0:0::1]:8443", {"default": True}, NOON)
    assert await write(audited_accounts.block_host, KEY, 1, "2001:db8:0::1", NOON) == "2001:db8::1"
    assert await write(audited_accounts.unblock_host, KEY, 1, "[2001:DB8::0:1]", NOON) == "2001:db8::1"


async def test_the_audit_log_names_the_user_of_the_operating_system_and_the_history_of_links_does_not(service: Service) -> None:
    actor = Actor(name=COMMAND_LINE.name, os_user="alice")
    await service.database.write(AuditWriter(actor, KEY.ids).add, NOON, "purge_started")
    assert [row.operator for row in await audited_rows(service.database)] == ["command line (alice)"]
    assert actor.name == "command line"
