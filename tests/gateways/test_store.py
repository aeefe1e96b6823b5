"""Tests of the administration of gateways: credentials stay secret, private addresses need permission, names are unique."""

from __future__ import annotations

from typing import Any

import pytest

from shortener.accounts.directory import ALL_APPLICATIONS
from shortener.container import Service
from shortener.errors import ApiError, ErrorCode
from shortener.gateways.presenter import gateway_fields
from shortener.gateways.store import NewGateway, select_gateway
from shortener.storage import schema
from tests.conftest import NOON, MakeService
from tests.factory import rows

KANNEL = {"url": "http://10.0.0.5:13013/cgi-bin/sendsms", "username": "user", "password": "S3CRET"}


async def test_credentials_are_encrypted_and_never_shown(service: Service) -> None:
    created = await service.gateways.create(1, NewGateway(name="kannel", preset="kannel", options=KANNEL))
    [stored] = [row for row in await rows(service.database, schema.gateways) if row.id == created.id]
    assert "S3CRET" not in str(stored)
    assert "S3CRET" not in str(gateway_fields(service.settings, created, NOON))
    assert created.config.settings.variables["password"] == "S3CRET"  # type: ignore[attr-defined]


async def test_a_private_address_needs_the_permission_of_the_operator(make_service: MakeService) -> None:
    service = await make_service(allow_private_targets=False)
    with pytest.raises(ApiError) as caught:
        await service.gateways.create(1, NewGateway(name="kannel", preset="kannel", options=KANNEL))
    assert caught.value.code is ErrorCode.FORBIDDEN_TARGET
    created = await service.gateways.create(1, NewGateway(name="kannel", preset="kannel", options=KANNEL, allow_private=True))
    assert created.config.allow_private
    metadata = NewGateway(name="x", settings={"url": "http://169.254.169.254/latest"}, allow_private=True)
    with pytest.raises(ApiError) as caught:
        await service.gateways.create(1, metadata)
    assert caught.value.code is ErrorCode.FORBIDDEN_TARGET


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"name": "simulator", "kind": "simulator"}, "name"),
        ({"name": "none", "kind": "simulator"}, "name"),
        ({"name": "", "kind": "simulator"}, "name"),
        ({"name": "x", "kind": "fax"}, "kind"),
        ({"name": "x"}, "settings.url"),
        ({"name": "x", "preset": "twilio", "options": {}}, "options"),
        ({"name": "x", "kind": "simulator", "preset": "twilio"}, "preset"),
        ({"name": "x", "kind": "simulator", "settings": {"fail": 2}}, "settings.fail"),
        ({"name": "x", "options": {"a": "b"}}, "options"),
    ],
)
async def test_an_invalid_gateway_is_rejected_and_leaves_nothing_behind(
    service: Service, values: dict[str, Any], field: str
) -> None:
    before = await rows(service.database, schema.gateways)
    with pytest.raises(ApiError) as caught:
        await service.gateways.create(1, NewGateway(**values))
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert caught.value.details[0].field == field
    assert await rows(service.database, schema.gateways) == before


async def test_a_name_can_be_used_again_after_its_gateway_was_removed(service: Service) -> None:
    first = await service.gateways.create(1, NewGateway(name="sim", kind="simulator"))
    with pytest.raises(ApiError) as caught:
        await service.gateways.create(1, NewGateway(name="sim", kind="simulator"))
    assert caught.value.code is ErrorCode.CONFLICT
    await service.gateways.remove(first.id)
    second = await service.gateways.create(1, NewGateway(name="sim", kind="simulator"))
    assert second.id != first.id
    with pytest.raises(ApiError) as caught:
        await service.gateways.get(first.id)
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_a_change_keeps_other_settings_and_credentials(service: Service) -> None:
    created = await service.gateways.create(1, NewGateway(name="kannel", preset="kannel", options=KANNEL))
    changed = await service.gateways.update(
        created.id, {"settings": {"success_statuses": "200-299"}, "timeout": 3, "rotate_report_key": True}
    )
    assert changed.config.settings.variables["password"] == "S3CRET"  # type: ignore[attr-defined]
    assert changed.config.revision == created.config.revision + 1
    assert changed.config.report_url != created.config.report_url
    assert changed.timeout == 3


async def test_only_the_operator_selects_a_gateway_of_the_installation(service: Service) -> None:
    shared = await service.gateways.create(ALL_APPLICATIONS, NewGateway(name="shared", kind="simulator"))
    with pytest.raises(ApiError) as caught:
        await service.database.write(select_gateway, 1, "shared", is_operator=False)
    assert caught.value.details[0].field == "gateway"
    await service.database.write(select_gateway, 1, "shared", is_operator=True)
    await service.directory.refresh()
    application = service.directory.application(1)
    assert application is not None
    assert application.gateway is not None
    assert application.gateway.id == shared.id
    await service.gateways.remove(shared.id)
    await service.directory.refresh()
    application = service.directory.application(1)
    assert application is not None
    assert application.gateway is None


async def test_a_request_may_name_the_simulator_and_own_gateways_but_no_other_gateway_of_the_installation(service: Service) -> None:
    await service.gateways.create(ALL_APPLICATIONS, NewGateway(name="shared", kind="simulator"))
    await service.gateways.create(1, NewGateway(name="own", kind="simulator"))
    await service.directory.refresh()
    application = service.directory.application(1)
    assert application is not None
    assert {name for name in ("shared", "own", "simulator", "") if application.find_gateway(name)} == {"own", "simulator"}


async def test_the_simulator_exists_once_and_cannot_be_removed(make_service: MakeService) -> None:
    service = await make_service()
    simulator = await service.gateways.find("simulator", 1)
    assert await service.database.write(service.gateways.ensure_simulator) == simulator.id
    with pytest.raises(ApiError) as caught:
        await service.gateways.remove(simulator.id)
    assert caught.value.code is ErrorCode.CONFLICT


async def test_only_the_operator_changes_the_address_of_a_gateway_that_may_be_private(make_service: MakeService) -> None:
    service = await make_service(allow_private_targets=False)
    created = await service.gateways.create(1, NewGateway(name="kannel", preset="kannel", options=KANNEL, allow_private=True))
    elsewhere = {"url": "http://10.0.0.6:6379/", "variables": {}, "headers": {}, "body": ""}
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(created.id, {"settings": elsewhere}, 1)
    assert caught.value.code is ErrorCode.FORBIDDEN_TARGET
    await service.gateways.update(created.id, {"settings": elsewhere}, is_operator=True)


PRIVATE = {"url": "http://10.0.0.5/api/{account}/send", "variables": {"account": "a1", "token": "S3CRET"}}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"url": "http://10.0.0.5/admin/{account}"}, "url"),
        ({"url": "http://10.0.0.5/api/{account}/send?page=admin"}, "url"),
        ({"url": "http://10.0.0.5:6379/api/{account}/send"}, "url"),
        ({"url": "https://10.0.0.5/api/{account}/send"}, "url"),
        ({"variables": {"account": "..", "token": "S3CRET"}}, "variables"),
        ({"method": "GET"}, "method"),
        ({"id_path": "$.secret"}, "id_path"),
        ({"error_path": "{value}"}, "error_path"),
        ({"error_code_path": "{value}"}, "error_code_path"),
        ({"success_path": "$.secret", "success_values": ["ok"]}, "success_path"),
    ],
)
async def test_only_the_operator_changes_what_a_gateway_that_may_be_private_requests_and_reads(
    make_service: MakeService, changes: dict[str, Any], field: str
) -> None:
    service = await make_service(allow_private_targets=False)
    created = await service.gateways.create(1, NewGateway(name="private", settings=PRIVATE, allow_private=True))
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(created.id, {"settings": changes}, 1)
    assert caught.value.code is ErrorCode.FORBIDDEN_TARGET
    assert f"settings.{field}" in [detail.field for detail in caught.value.details]
    assert (await service.gateways.get(created.id)).config.settings == created.config.settings
    await service.gateways.update(created.id, {"settings": changes}, is_operator=True)


async def test_an_application_changes_the_credentials_of_its_gateway_that_may_be_private(make_service: MakeService) -> None:
    service = await make_service(allow_private_targets=False)
    created = await service.gateways.create(1, NewGateway(name="private", settings=PRIVATE, allow_private=True))
    changes = {"url": PRIVATE["url"], "variables": {"account": "a1", "token": "N3W"}, "success_statuses": "200"}
    changed = await service.gateways.update(created.id, {"settings": changes}, 1)
    assert changed.config.settings.variables["token"] == "N3W"  # type: ignore[attr-defined]


async def test_only_the_operator_restores_lost_settings_of_a_gateway_that_may_be_private(make_service: MakeService) -> None:
    service = await make_service(allow_private_targets=False)
    created = await service.gateways.create(1, NewGateway(name="private", settings=PRIVATE, allow_private=True))
    await service.database.write(lambda connection: connection.execute(schema.gateways.update().values(settings=None)))
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(created.id, {"settings": PRIVATE}, 1)
    assert caught.value.code is ErrorCode.FORBIDDEN_TARGET
    await service.gateways.update(created.id, {"settings": PRIVATE}, is_operator=True)


async def test_stored_credentials_do_not_reach_another_address(service: Service) -> None:
    options = {"url": "https://gw.example/send", "token": "S3CRET"}
    created = await service.gateways.create(1, NewGateway(name="plain", preset="plain", options=options))
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(created.id, {"settings": {"url": "https://attacker.example/"}}, 1)
    assert [detail.field for detail in caught.value.details] == ["settings.variables", "settings.headers", "settings.body"]
    assert (await service.gateways.get(created.id)).config.settings.url == "https://gw.example/send"  # type: ignore[attr-defined]
