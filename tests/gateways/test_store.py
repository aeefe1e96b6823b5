"""Tests of the administration of gateways: credentials stay secret, private addresses need permission, names are unique."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from shortener.accounts.audit import Actor, AuditWriter
from shortener.container import Service
from shortener.errors import ApiError, ErrorCode
from shortener.gateways.gateway import GatewayChanges, NewGateway
from shortener.gateways.presenter import gateway_fields
from shortener.gateways.store import gateway_name, select_gateway
from shortener.ids import IdGenerator
from shortener.model import ALL_APPLICATIONS
from shortener.storage import schema
from shortener.storage.types import to_ms
from tests.conftest import NOON, MakeService
from tests.factory import AUDIT, audited_rows, rows

KANNEL = {"url": "http://10.0.0.5:13013/cgi-bin/sendsms", "username": "user", "password": "S3CRET"}


async def test_gateway_credentials_are_encrypted_and_never_shown(service: Service) -> None:
    created = await service.gateways.create(AUDIT, 1, NewGateway(name="kannel", preset="kannel", options=KANNEL))
    [stored] = [row for row in await rows(service.database, schema.gateways) if row.id == created.id]
    assert "S3CRET" not in str(stored)
    assert "S3CRET" not in str(gateway_fields(service.settings, created, NOON))
    assert created.config.settings.variables["password"] == "S3CRET"  # type: ignore[attr-defined]


async def test_a_gateway_with_a_private_address_requires_the_permission_of_the_operator(make_service: MakeService) -> None:
    service = await make_service(allow_private_targets=False)
    with pytest.raises(ApiError) as caught:
        await service.gateways.create(AUDIT, 1, NewGateway(name="kannel", preset="kannel", options=KANNEL))
    assert caught.value.code is ErrorCode.FORBIDDEN_TARGET
    created = await service.gateways.create(
        AUDIT, 1, NewGateway(name="kannel", preset="kannel", options=KANNEL, allow_private=True)
    )
    assert created.config.allow_private
    metadata = NewGateway(name="x", settings={"url": "http://169.254.169.254/latest"}, allow_private=True)
    with pytest.raises(ApiError) as caught:
        await service.gateways.create(AUDIT, 1, metadata)
    assert caught.value.code is ErrorCode.FORBIDDEN_TARGET


async def test_the_name_of_a_removed_gateway_can_be_used_again(service: Service) -> None:
    first = await service.gateways.create(AUDIT, 1, NewGateway(name="sim", kind="simulator"))
    with pytest.raises(ApiError) as caught:
        await service.gateways.create(AUDIT, 1, NewGateway(name="sim", kind="simulator"))
    assert caught.value.code is ErrorCode.CONFLICT
    await service.gateways.remove(AUDIT, first.id)
    second = await service.gateways.create(AUDIT, 1, NewGateway(name="sim", kind="simulator"))
    assert second.id != first.id
    with pytest.raises(ApiError) as caught:
        await service.gateways.get(first.id)
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_an_update_of_a_gateway_keeps_its_other_settings_and_credentials(service: Service) -> None:
    created = await service.gateways.create(AUDIT, 1, NewGateway(name="kannel", preset="kannel", options=KANNEL))
    changed = await service.gateways.update(
        AUDIT, created.id, {"settings": {"success_statuses": "200-299"}, "timeout": 3, "rotate_report_key": True}
    )
    assert changed.config.settings.variables["password"] == "S3CRET"  # type: ignore[attr-defined]
    assert changed.config.revision == created.config.revision + 1
    assert changed.config.report_url != created.config.report_url
    assert changed.timeout == 3


async def test_only_the_operator_can_select_a_shared_gateway_for_an_application(service: Service) -> None:
    shared = await service.gateways.create(AUDIT, ALL_APPLICATIONS, NewGateway(name="shared", kind="simulator"))
    with pytest.raises(ApiError) as caught:
        await service.database.write(select_gateway, AUDIT, 1, "shared", NOON, is_operator=False)
    assert caught.value.details[0].field == "gateway"
    await service.database.write(select_gateway, AUDIT, 1, "shared", NOON, is_operator=True)
    await service.directory.refresh()
    application = service.directory.application(1)
    assert application is not None
    assert application.gateway is not None
    assert application.gateway.id == shared.id
    await service.gateways.remove(AUDIT, shared.id)
    await service.directory.refresh()
    application = service.directory.application(1)
    assert application is not None
    assert application.gateway is None
    assert application.removed_gateway == "shared"
    assert await service.database.read(gateway_name, shared.id) == "none", "a form must not take the removal for a change"
    await service.database.write(select_gateway, AUDIT, 1, "none", NOON, is_operator=False)
    await service.directory.refresh()
    application = service.directory.application(1)
    assert application is not None
    assert application.removed_gateway == ""


async def test_a_request_may_select_the_simulator_and_gateways_of_its_application_but_no_shared_gateway(service: Service) -> None:
    await service.gateways.create(AUDIT, ALL_APPLICATIONS, NewGateway(name="shared", kind="simulator"))
    await service.gateways.create(AUDIT, 1, NewGateway(name="own", kind="simulator"))
    await service.directory.refresh()
    application = service.directory.application(1)
    assert application is not None
    assert {name for name in ("shared", "own", "simulator", "") if application.find_gateway(name)} == {"own", "simulator"}


async def test_the_simulator_exists_once_and_cannot_be_removed(make_service: MakeService) -> None:
    service = await make_service()
    simulator = await service.gateways.find("simulator", 1)
    assert await service.database.write(service.gateways.ensure_simulator) == simulator.id
    with pytest.raises(ApiError) as caught:
        await service.gateways.remove(AUDIT, simulator.id)
    assert caught.value.code is ErrorCode.CONFLICT


async def test_the_audit_log_names_the_changed_settings_of_a_gateway_without_their_values(service: Service) -> None:
    key = AuditWriter(Actor(name="key 5"), IdGenerator(1))
    created = await service.gateways.create(key, 1, NewGateway(name="kannel", preset="kannel", options=KANNEL, allow_private=True))
    gateway = created.config.id
    change: GatewayChanges = {"timeout": 3, "settings": {"method": "POST"}}
    await service.gateways.update(key, gateway, {**change, "rotate_report_key": True}, is_operator=True)
    await service.gateways.update(key, gateway, change, is_operator=True)
    await service.database.write(select_gateway, key, 1, "kannel", NOON, is_operator=False)
    rows = await audited_rows(service.database)
    subject = f"gateway {gateway} kannel"
    assert [(row.action, row.object, row.before, row.after) for row in rows] == [
        ("gateway_created", subject, None, {"kind": "http", "preset": "kannel", "enabled": True, "allow_private": True}),
        (
            "gateway_changed",
            subject,
            {"timeout": None, "settings": "", "report_key": ""},
            {"timeout": 3, "settings": "changed: method", "report_key": "replaced"},
        ),
        ("settings_changed", "default", {"gateway": "none"}, {"gateway": "kannel"}),
    ]


async def test_changes_of_the_settings_of_a_gateway_at_the_same_time_are_all_kept(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = await service.gateways.create(AUDIT, 1, NewGateway(name="kannel", preset="kannel", options=KANNEL))
    check = service.gateways._check_target

    async def change_meanwhile(*target: Any) -> None:
        monkeypatch.setattr(service.gateways, "_check_target", check)
        await service.gateways.update(AUDIT, created.id, {"settings": {"success_statuses": "200-299"}})
        await check(*target)

    monkeypatch.setattr(service.gateways, "_check_target", change_meanwhile)
    changed = await service.gateways.update(AUDIT, created.id, {"settings": {"method": "POST"}, "timeout": 3})
    settings = changed.config.settings.model_dump()
    assert (settings["success_statuses"], settings["method"], changed.timeout) == ("200-299", "POST", 3)
    assert settings["variables"]["password"] == "S3CRET"
    assert changed.config.revision == created.config.revision + 2


async def test_a_change_of_a_gateway_that_other_requests_change_again_and_again_is_rejected(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = await service.gateways.create(AUDIT, 1, NewGateway(name="kannel", preset="kannel", options=KANNEL))
    table = schema.gateways
    changed = update(table).where(table.c.id == created.id).values(revision=table.c.revision + 1)

    async def change_meanwhile(*target: Any) -> None:
        await service.database.write(lambda connection: connection.execute(changed) and None)

    monkeypatch.setattr(service.gateways, "_check_target", change_meanwhile)
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(AUDIT, created.id, {"settings": {"success_statuses": "200-299"}})
    assert caught.value.code is ErrorCode.CONFLICT
    assert (await service.gateways.get(created.id)).config.settings == created.config.settings


@pytest.mark.parametrize(
    ("was_enabled", "change", "is_closed"),
    [
        (True, {"enabled": True, "name": "renamed"}, False),
        (True, {"enabled": True, "settings": {"url": "https://gateway.example/sms"}}, False),
        (True, {"enabled": True, "settings": {"url": "https://gateway.example/other"}}, True),
        (False, {"enabled": True}, True),
        (False, {"name": "renamed"}, False),
    ],
)
async def test_only_new_settings_or_enabling_a_disabled_gateway_closes_its_circuit_breaker(
    service: Service, was_enabled: bool, change: GatewayChanges, is_closed: bool
) -> None:
    new = NewGateway(name="test", kind="http", settings={"url": "https://gateway.example/sms"})
    gateway = await service.gateways.create(AUDIT, 1, new)
    failing = {
        "enabled": was_enabled,
        "failures_in_row": 10,
        "opened_at": NOON,
        "open_until": NOON + timedelta(minutes=5),
    }
    table = schema.gateways
    is_open = update(table).where(table.c.id == gateway.id).values(failing)
    await service.database.write(lambda connection: connection.execute(is_open).rowcount)
    health = (await service.gateways.update(AUDIT, gateway.id, change, is_operator=True)).health
    assert health.breaker(to_ms(NOON)) == ("closed" if is_closed else "open")
    assert health.failures_in_row == (0 if is_closed else 10)
