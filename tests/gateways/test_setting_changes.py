"""Tests of changes of a gateway's settings: one member, masks, and a preset that is built again."""

from __future__ import annotations

from typing import Any

import pytest

from shortener.container import Service
from shortener.errors import ApiError, ErrorCode
from shortener.gateways.gateway import GatewayChanges, NewGateway, StoredGateway
from shortener.gateways.presenter import gateway_fields
from tests.conftest import NOON
from tests.factory import AUDIT
from tests.one_service import on_one_service

KANNEL = {"url": "http://10.0.0.5:13013/cgi-bin/sendsms", "username": "user", "password": "S3CRET"}


async def kannel(service: Service) -> StoredGateway:
    return await service.gateways.create(AUDIT, 1, NewGateway(name="kannel", preset="kannel", options=KANNEL))


def stored(gateway: StoredGateway) -> dict[str, Any]:
    return gateway.config.settings.model_dump()


async def test_the_shown_url_of_a_gateway_can_be_stored_again_with_another_host(service: Service) -> None:
    created = await kannel(service)
    shown = gateway_fields(service.settings, created, NOON)["settings"]["url"]
    assert shown == stored(created)["url"]
    changed = await service.gateways.update(
        AUDIT, created.id, {"settings": {"url": shown.replace("10.0.0.5", "10.0.0.6")}}, is_operator=True
    )
    assert stored(changed) == {**stored(created), "url": shown.replace("10.0.0.5", "10.0.0.6")}


@on_one_service
@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"url": "http://10.0.0.6/send?key=***"}, "settings.url"),
        ({"variables": {"username": "user", "password": "***"}}, "settings.variables.password"),
        ({"variables.password": "***"}, "settings.variables.password"),
        ({"headers": {"Authorization": "***"}}, "settings.headers.Authorization"),
    ],
)
@pytest.mark.parametrize("is_operator", [True, False])
async def test_a_mask_in_the_place_of_a_hidden_value_is_rejected(
    service: Service, settings: dict[str, Any], field: str, is_operator: bool
) -> None:
    created = await kannel(service)
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(AUDIT, created.id, {"settings": settings}, is_operator=is_operator)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert [(one.field, one.reason[:12]) for one in caught.value.details] == [(field, "contains ***")]
    assert stored(await service.gateways.get(created.id)) == stored(created)
    for new in (
        NewGateway(name="x", settings={"url": "http://10.0.0.6/", **settings}),
        NewGateway(name="x", preset="plain", options={"url": "http://10.0.0.6/?key=***"}),
        NewGateway(name="x", kind="smpp", settings={"url": "smpp://10.0.0.6", "system_id": "x", "password": "***"}),
    ):
        with pytest.raises(ApiError) as caught:
            await service.gateways.create(AUDIT, 1, new)
        assert {one.reason[:12] for one in caught.value.details} == {"contains ***"}
    await service.gateways.remove(AUDIT, created.id)


async def test_one_variable_of_a_gateway_changes_and_the_others_stay(service: Service) -> None:
    created = await kannel(service)
    changed = await service.gateways.update(AUDIT, created.id, {"settings": {"variables.password": "new"}})
    assert stored(changed) == {**stored(created), "variables": {"username": "user", "password": "new"}}
    states: GatewayChanges = {"settings": {"report_states.64": "FAILED", "report_states.1": None}}
    reported = stored(await service.gateways.update(AUDIT, created.id, states))["report_states"]
    assert (reported["64"], reported["2"], "1" in reported) == ("FAILED", "FAILED", False)


async def test_one_member_of_a_setting_that_has_its_default_changes_and_the_other_members_stay(service: Service) -> None:
    new = NewGateway(name="own", settings={"url": "http://10.0.0.5/send", "encodings.UCS-2": "8"})
    created = await service.gateways.create(AUDIT, 1, new)
    assert stored(created)["encodings"] == {"GSM-7": "GSM-7", "UCS-2": "8"}
    changed = await service.gateways.update(AUDIT, created.id, {"settings": {"report_fields.id": "msgid"}}, is_operator=True)
    assert stored(changed)["report_fields"] == {"status": "status", "id": "msgid"}
    changed = await service.gateways.update(AUDIT, created.id, {"settings": {"report_fields.status": None}}, is_operator=True)
    assert stored(changed)["report_fields"] == {"id": "msgid"}


@on_one_service
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"password": "new"}, "is a variable of this gateway: write variables.password, or --variable password=VALUE"),
        ({"method.x": "new"}, "method has no members"),
        ({"variables.": "new"}, "variables has no members"),
        ({"variables": {"password": "new"}}, "variables.username sets one"),
        ({"nope.x": "new"}, "is not a known field"),
    ],
)
async def test_a_wrong_name_of_a_variable_is_rejected_with_the_right_one(
    service: Service, settings: dict[str, Any], reason: str
) -> None:
    created = await kannel(service)
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(AUDIT, created.id, {"settings": settings}, is_operator=True)
    assert reason in caught.value.details[0].reason
    await service.gateways.remove(AUDIT, created.id)


async def test_an_api_key_cannot_send_kept_variables_to_another_host_by_setting_one_of_them(service: Service) -> None:
    created = await kannel(service)
    url = stored(created)["url"].replace("10.0.0.5", "10.0.0.6")
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(AUDIT, created.id, {"settings": {"url": url, "variables.username": "user"}})
    assert caught.value.details[0].field == "settings.variables"


async def test_a_preset_is_built_again_from_one_option_and_the_stored_ones(service: Service) -> None:
    created = await kannel(service)
    broken = stored(created)["url"].replace("UTF-8", "x")
    await service.gateways.update(AUDIT, created.id, {"settings": {"url": broken, "retry_codes": ["9"]}}, is_operator=True)
    changed = await service.gateways.update(
        AUDIT, created.id, {"options": {"url": "http://10.0.0.6/sendsms"}, "settings": {"method": "POST"}}, is_operator=True
    )
    url = stored(created)["url"].replace("http://10.0.0.5:13013/cgi-bin/sendsms", "http://10.0.0.6/sendsms")
    assert stored(changed) == {**stored(created), "url": url, "retry_codes": ("9",), "method": "POST"}
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(AUDIT, created.id, {"options": {"url": url}}, is_operator=True)
    assert "must not contain a query" in caught.value.details[0].reason


@pytest.mark.parametrize(
    ("preset", "options", "url"),
    [
        (
            "infobip",
            {"url": "https://x.api.infobip.example", "api_key": "old"},
            "https://x.api.infobip.example/sms/2/text/advanced",
        ),
        ("vonage", {"api_key": "key", "api_secret": "old"}, "https://eu.nexmo.example/sms/json?callback=1"),
        (
            "twilio",
            {"account_sid": "AC1", "auth_token": "old", "messaging_service_sid": "MG1"},
            "https://proxy.example/twilio",
        ),
    ],
)
async def test_a_preset_is_not_built_again_from_a_url_of_another_form(
    service: Service, preset: str, options: dict[str, str], url: str
) -> None:
    new = NewGateway(name=preset, preset=preset, options=options, settings={"url": url})
    created = await service.gateways.create(AUDIT, 1, new)
    changes: dict[str, str] = {name: "new" for name, value in options.items() if value == "old"}
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(AUDIT, created.id, {"options": changes}, is_operator=True)
    assert [one.field for one in caught.value.details] == ["options"]
    assert "must contain url" in caught.value.details[0].reason
    assert stored(await service.gateways.get(created.id)) == stored(created)
    complete = {**options, **changes, "url": "https://gw.example"}
    changed = await service.gateways.update(AUDIT, created.id, {"options": complete}, is_operator=True)
    assert stored(changed)["url"].startswith("https://gw.example/")


async def test_options_are_rejected_for_a_gateway_without_a_preset(service: Service) -> None:
    created = await service.gateways.create(AUDIT, 1, NewGateway(name="sim", kind="simulator"))
    with pytest.raises(ApiError) as caught:
        await service.gateways.update(AUDIT, created.id, {"options": {"url": "http://10.0.0.6/"}}, is_operator=True)
    assert caught.value.details[0].field == "options"
