"""Tests of gateway values: invalid values are rejected, and only the operator changes requests to a private gateway."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shortener.container import Service
from shortener.errors import ApiError, ErrorCode
from shortener.gateways.gateway import NewGateway
from shortener.gateways.input_checks import parse_settings
from shortener.storage import schema
from tests.conftest import MakeService
from tests.factory import AUDIT, rows
from tests.one_service import on_one_service

KANNEL = {"url": "http://10.0.0.5:13013/cgi-bin/sendsms", "username": "user", "password": "S3CRET"}
PRIVATE = {"url": "http://10.0.0.5/api/{account}/send", "variables": {"account": "a1", "token": "S3CRET"}}


@on_one_service
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
        ({"name": "x", "kind": "simulator", "timeout": math.nan}, "timeout"),
        ({"name": "x", "kind": "simulator", "max_per_second": 1e-310}, "max_per_second"),
        ({"name": "x", "kind": "simulator", "max_per_second": math.inf}, "max_per_second"),
        ({"name": "x", "kind": "simulator", "max_per_second": math.nan}, "max_per_second"),
        ({"name": "x", "kind": "simulator", "schedule": [1.0, math.inf]}, "schedule"),
        ({"name": "x", "kind": "simulator", "schedule": []}, "schedule"),
        ({"name": "x", "kind": "simulator", "settings": {"delay": "nan"}}, "settings.delay"),
    ],
)
async def test_an_invalid_gateway_is_rejected_and_nothing_is_stored(service: Service, values: dict[str, Any], field: str) -> None:
    before = await rows(service.database, schema.gateways)
    with pytest.raises(ApiError) as caught:
        await service.gateways.create(AUDIT, 1, NewGateway(**values))
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert caught.value.details[0].field == field
    assert await rows(service.database, schema.gateways) == before


async def test_only_the_operator_can_change_the_address_of_a_gateway_with_the_option_allow_private(
    make_service: MakeService,
) -> None:
    service = await make_service(allow_private_targets=False)
    created = await service.gateways.create(
        AUDIT, 1, NewGateway(name="kannel", preset="kannel", options=KANNEL, allow_private=True)
    )
    elsewhere = {"url": "http://10.0.0.6:6379/", "variables": {}, "headers": {}, "body": ""}
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(AUDIT, created.id, {"settings": elsewhere}, 1)
    assert caught.value.code is ErrorCode.FORBIDDEN_TARGET
    await service.gateways.update(AUDIT, created.id, {"settings": elsewhere}, is_operator=True)


@pytest.fixture
async def strict_service(make_service: MakeService) -> Service:
    """A service that permits no private targets."""
    return await make_service(allow_private_targets=False)


@on_one_service
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"url": "http://10.0.0.5/admin/{account}"}, "url"),
        ({"url": "http://10.0.0.5/api/{account}/send?page=admin"}, "url"),
        ({"url": "http://10.0.0.5:6379/api/{account}/send"}, "url"),
        ({"url": "https://10.0.0.5/api/{account}/send"}, "url"),
        ({"variables": {"account": "..", "token": "S3CRET"}}, "variables"),
        ({"method": "GET"}, "method"),
        ({"headers": {"Metadata-Flavor": "Google"}}, "headers"),
        ({"body": '{"admin": true}'}, "body"),
        ({"content_type": "text/xml"}, "content_type"),
        ({"id_path": "$.secret"}, "id_path"),
        ({"error_path": "{value}"}, "error_path"),
        ({"error_code_path": "{value}"}, "error_code_path"),
        ({"success_path": "$.secret", "success_values": ["ok"]}, "success_path"),
    ],
)
async def test_only_the_operator_can_change_the_request_settings_of_a_gateway_with_the_option_allow_private(
    strict_service: Service, changes: dict[str, Any], field: str
) -> None:
    service = strict_service
    created = await service.gateways.create(AUDIT, 1, NewGateway(name="private", settings=PRIVATE, allow_private=True))
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(AUDIT, created.id, {"settings": changes}, 1)
    assert caught.value.code is ErrorCode.FORBIDDEN_TARGET
    assert f"settings.{field}" in [detail.field for detail in caught.value.details]
    assert (await service.gateways.get(created.id)).config.settings == created.config.settings
    await service.gateways.update(AUDIT, created.id, {"settings": changes}, is_operator=True)
    await service.gateways.remove(AUDIT, created.id)


async def test_an_application_can_change_the_credentials_of_its_gateway_with_the_option_allow_private(
    make_service: MakeService,
) -> None:
    service = await make_service(allow_private_targets=False)
    created = await service.gateways.create(AUDIT, 1, NewGateway(name="private", settings=PRIVATE, allow_private=True))
    changes = {"url": PRIVATE["url"], "variables": {"account": "a1", "token": "N3W"}, "success_statuses": "200"}
    changed = await service.gateways.update(AUDIT, created.id, {"settings": changes}, 1)
    assert changed.config.settings.variables["token"] == "N3W"  # type: ignore[attr-defined]


async def test_only_the_operator_can_restore_lost_settings_of_a_gateway_with_the_option_allow_private(
    make_service: MakeService,
) -> None:
    service = await make_service(allow_private_targets=False)
    created = await service.gateways.create(AUDIT, 1, NewGateway(name="private", settings=PRIVATE, allow_private=True))
    await service.database.write(lambda connection: connection.execute(schema.gateways.update().values(settings=None)))
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(AUDIT, created.id, {"settings": PRIVATE}, 1)
    assert caught.value.code is ErrorCode.FORBIDDEN_TARGET
    await service.gateways.update(AUDIT, created.id, {"settings": PRIVATE}, is_operator=True)


async def test_a_new_gateway_address_is_rejected_unless_the_credentials_are_set_again(service: Service) -> None:
    options = {"url": "https://gw.example/send", "token": "S3CRET"}
    created = await service.gateways.create(AUDIT, 1, NewGateway(name="plain", preset="plain", options=options))
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(AUDIT, created.id, {"settings": {"url": "https://attacker.example/"}}, 1)
    assert [detail.field for detail in caught.value.details] == ["settings.variables", "settings.headers", "settings.body"]
    assert (await service.gateways.get(created.id)).config.settings.url == "https://gw.example/send"  # type: ignore[attr-defined]


def test_the_error_of_an_unknown_setting_of_a_gateway_names_the_nearest_one() -> None:
    unknown = "is not a known field"
    names = {
        "Metod": f"{unknown}; did you mean method?",
        "timeoutx": f"{unknown}; did you mean timeout? It is a property of the gateway, and not one of its settings",
        "timeout": f"{unknown}. It is a property of the gateway, and not one of its settings",
        "colour": unknown,
    }
    with pytest.raises(ApiError) as caught:
        parse_settings("http", {"url": "https://gw.example/"} | dict.fromkeys(names, "1"))
    assert {detail.field: detail.reason for detail in caught.value.details} == {f"settings.{name}": names[name] for name in names}
