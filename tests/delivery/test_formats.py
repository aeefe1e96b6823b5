from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.delivery.event_fields import FACTS
from shortener.delivery.formats import CONTENT_TYPE, DEFAULT_FIELDS, FIELDS, FORMATS, check_fields, render
from shortener.delivery.placeholders import TELECOM_PLACEHOLDERS
from tests.one_test import in_one_test

CLICK: dict[str, Any] = {
    "event_id": "evt_1",
    "topic": "state",
    "timestamp": "2026-11-20T12:00:00.000Z",
    "application_id": 631,
    "company_id": 92,
    "message_id": "uFAbXDeSXGMzgK5Qoxw5g2",
    "message_request_id": "9E0qhwPclVXnqMjbaYF4J5",
    "external_message_request_id": None,
    "to_address": "+14085550100",
    "from_address": "18775550100",
    "sender_id_id": "EjihJOXWJE24O",
    "sender_id_alias": "Gladiator",
    "previous_state": "DELIVERED",
    "new_state": "CLICKTHRU",
    "fragments_count": 1,
    "mt_price": "0.0095",
    "click_id": "c1",
    "code": "8kVnq2LmRd",
    "short_url": "https://go.brand.example/8kVnq2LmRd",
    "url": "https://shop.example/a?b=1",
    "label": None,
    "verdict": "human",
    "first_for_message": True,
    "first_for_link": True,
    "click_number": 1,
    "seconds_since_sent": 44,
    "seconds_since_delivered": 42,
    "sent_at": "2026-11-20T11:59:16.000Z",
    "delivered_at": "2026-11-20T11:59:18.000Z",
    "clicked_at": "2026-11-20T12:00:00.000Z",
}
CONVERSION: dict[str, Any] = CLICK | {
    "topic": "conversion",
    "conversion_id": "v1",
    "action": "sale",
    "conversion_status": "approved",
    "disposition": "positive",
    "value": "-19.90",
    "currency": "EUR",
    "transaction_id": "t-1",
    "process_key": "A37D",
}
TOPICS = ["state", "click", "late_click", "conversion", "delivery", "click_retracted", "test"]


def body(format: str, facts: dict[str, Any], attempt: int = 1, fields: list[str] | None = None) -> Any:
    """Build the body of an attempt and parse it as JSON. Decimal numbers are parsed as Decimal, to compare their digits."""
    raw, content_type = render(format, facts, attempt=attempt, fields=fields)
    assert content_type == CONTENT_TYPE
    return json.loads(raw, parse_float=Decimal)


def test_the_scg_body_equals_syniverses_documented_example() -> None:
    raw, _ = render("scg", CLICK, attempt=1, fields=None)
    assert raw == (
        b'{"topic":"SCG-Message","attempt":1,"event_id":"evt_1","event":{"evt-tp":"message_state_change",'
        b'"timestamp":"2026-11-20T12:00:00.000Z","fld-val-list":{"previous_state":"DELIVERED","new_state":"CLICKTHRU",'
        b'"message_request_id":"9E0qhwPclVXnqMjbaYF4J5","message_id":"uFAbXDeSXGMzgK5Qoxw5g2",'
        b'"external_message_request_id":"","to_address":"+14085550100","from_address":"18775550100","has_attachment":false,'
        b'"reason_code":"200","reason_description":"SUCCESS","application_id":631,"company-id":92,'
        b'"sender_id_id":"EjihJOXWJE24O","sender_id_alias":"Gladiator","fragments_count":1,"mt_price":0.0095,'
        b'"click_id":"c1","short_url":"https://go.brand.example/8kVnq2LmRd","url":"https://shop.example/a?b=1","label":null,'
        b'"seconds_since_delivered":42}}}'
    )


def test_the_bodies_of_two_attempts_differ_only_in_the_attempt_number() -> None:
    first, second = body("scg", CLICK), body("scg", CLICK, attempt=2)
    assert (first.pop("attempt"), second.pop("attempt")) == (1, 2)
    assert first == second


def test_the_metadata_is_the_last_field_of_the_scg_body() -> None:
    values = body("scg", CLICK | {"metadata": {"order": 7}})["event"]["fld-val-list"]
    assert list(values)[-1] == "metadata"
    assert values["metadata"] == {"order": 7}


def test_the_scg_body_of_a_state_change_without_a_click_has_no_fields_of_a_click() -> None:
    facts = CLICK | {"new_state": "FAILED", "click_id": None, "reason_code": None}
    values = body("scg", facts)["event"]["fld-val-list"]
    assert list(values)[-1] == "mt_price"
    assert (values["reason_code"], values["reason_description"]) == ("", "")


def test_the_scg_body_contains_a_reported_reason_code_as_text() -> None:
    values = body("scg", CLICK | {"new_state": "FAILED", "reason_code": 4007, "reason_description": "Bad"})["event"]["fld-val-list"]
    assert (values["reason_code"], values["reason_description"]) == ("4007", "Bad")


@pytest.mark.parametrize(
    ("topic", "event_type", "names"),
    [
        ("state", "message_state_change", {"click_id", "label"}),
        ("click", "link_click", {"click_id", "click_number", "first_for_message", "verdict"}),
        ("late_click", "late_click", {"click_id", "user_agent"}),
        ("click_retracted", "click_retracted", {"click_id", "verdict_reason"}),
        ("conversion", "conversion", {"conversion_id", "value", "currency", "transaction_id"}),
        ("delivery", "delivery_report", {"report_status", "telecom_message_id", "delivered_at"}),
        ("test", "test", set()),
    ],
)
def test_the_field_evt_tp_of_the_scg_body_contains_the_kind_of_the_event(topic: str, event_type: str, names: set[str]) -> None:
    event = body("scg", CONVERSION | {"topic": topic})["event"]
    assert event["evt-tp"] == event_type
    assert names <= set(event["fld-val-list"])


@pytest.mark.parametrize(
    ("price", "digits"),
    [
        ("0.0095", "0.0095"),
        ("0.00950", "0.00950"),
        ("12", "12"),
        ("-1.5", "-1.5"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("1E-7", "0.0000001"),
        ("+5", "5"),
        (".5", "0.5"),
        ("007.10", "7.10"),
        (3, "3"),
    ],
)
def test_a_price_in_a_body_keeps_its_exact_digits(price: Any, digits: str) -> None:
    for format, key in (("scg", "mt_price"), ("json", "cost"), ("xoxzo", "cost"), ("infobip", "pricePerMessage")):
        raw = render(format, CLICK | {"mt_price": price}, attempt=1)[0].decode()
        assert re.search(rf'"{key}":{re.escape(digits)}[,}}]', raw)


@pytest.mark.parametrize("price", [None, "", "NaN", "Infinity", "cheap", "1,5", "1E+999999999"])
def test_an_invalid_price_is_null_in_the_body(price: str | None) -> None:
    assert body("json", CLICK | {"mt_price": price}, fields=["cost", "mt_price"]) == {"cost": None, "mt_price": None}


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=8))
def test_the_price_in_a_body_equals_the_price_of_the_event(price: Decimal) -> None:
    assert Decimal(body("scg", {"mt_price": str(price)})["event"]["fld-val-list"]["mt_price"]) == price


def test_a_json_body_contains_the_fields_of_the_tracker_in_its_order() -> None:
    fields = ["value", "phone", "message_id", "status", "event", "first_for_link", "currency", "cost"]
    found = body("json", CONVERSION, fields=fields)
    assert list(found) == fields
    assert found == {
        "value": "-19.90",
        "phone": "+14085550100",
        "message_id": "uFAbXDeSXGMzgK5Qoxw5g2",
        "status": "approved",
        "event": "conversion",
        "first_for_link": True,
        "currency": "EUR",
        "cost": Decimal("0.0095"),
    }


def test_a_json_body_has_the_default_fields_if_the_tracker_has_none() -> None:
    assert list(body("json", CONVERSION)) == list(DEFAULT_FIELDS)
    assert body("json", CONVERSION, fields=[]) == {}


def test_the_default_json_body_contains_the_event_id_the_attempt_number_and_both_states_of_the_message() -> None:
    facts = CLICK | {"external_message_request_id": "x1", "metadata": {"order": 7}, "report_status": "DELIVRD"}
    found = body("json", facts, attempt=3)
    assert {name: found[name] for name in ("event", "event_id", "attempt", "previous_state", "new_state", "status")} == {
        "event": "state",
        "event_id": "evt_1",
        "attempt": 3,
        "previous_state": "DELIVERED",
        "new_state": "CLICKTHRU",
        "status": "CLICKTHRU",
    }
    assert (found["message_request_id"], found["external_message_request_id"]) == ("9E0qhwPclVXnqMjbaYF4J5", "x1")
    assert found["metadata"] == {"order": 7}


@pytest.mark.parametrize("format", FORMATS)
def test_a_body_of_every_format_contains_the_message_id_the_external_id_and_the_metadata(format: str) -> None:
    raw = render(format, CLICK | {"external_message_request_id": "x1", "metadata": {"order": "seven"}}, attempt=1)[0].decode()
    assert all(text in raw for text in ("uFAbXDeSXGMzgK5Qoxw5g2", "x1", "seven"))


def test_a_json_body_can_contain_every_event_field_under_its_default_name_and_its_23_telecom_name() -> None:
    assert set(FIELDS) == set(FACTS) | set(TELECOM_PLACEHOLDERS) | {"event", "attempt"}
    assert len(FIELDS) == len(set(FIELDS))
    assert check_fields(FIELDS) == []
    assert check_fields(DEFAULT_FIELDS) == []
    assert check_fields(["phone", "Phone", "fone"]) == ["Phone", "fone"]


def test_the_xoxzo_body_of_a_click_equals_the_documented_status_response() -> None:
    assert body("xoxzo", CLICK | {"topic": "click"}) == {
        "status": "DELIVERED",
        "sender": "18775550100",
        "sent_time": "2026-11-20 11:59:16",
        "cost": Decimal("0.0095"),
        "msgid": "uFAbXDeSXGMzgK5Qoxw5g2",
        "recipient": "+14085550100",
        "link_tracking": {
            "link": "https://shop.example/a?b=1",
            "shortlink": "https://go.brand.example/8kVnq2LmRd",
            "accessed": True,
            "accessed_on": "2026-11-20 12:00:00",
        },
        "event": "click",
        "event_id": "evt_1",
        "click": {
            "click_id": "c1",
            "label": None,
            "first_for_message": True,
            "first_for_link": True,
            "click_number": 1,
            "seconds_since_sent": 44,
            "seconds_since_delivered": 42,
            "verdict": "human",
            "verdict_reason": None,
        },
    }


def test_the_sender_and_the_time_in_the_xoxzo_body_are_those_of_the_status_response() -> None:
    facts = CLICK | {"topic": "delivery", "created_at": "2026-11-20T11:59:15.000Z", "sent_at": None}
    assert body("xoxzo", facts)["sent_time"] == "2026-11-20 11:59:15"
    assert body("xoxzo", facts | {"from_address": ""})["sender"] == "Gladiator"
    assert body("xoxzo", facts | {"from_address": "", "sender_id_alias": ""})["sender"] == "EjihJOXWJE24O"


def test_the_field_accessed_is_false_in_the_xoxzo_body_of_an_event_without_click() -> None:
    facts = {key: value for key, value in CLICK.items() if key != "clicked_at"}
    tracking = body("xoxzo", facts | {"topic": "delivery", "new_state": "SENT"})["link_tracking"]
    assert (tracking["accessed"], tracking["accessed_on"]) == (False, None)


def test_every_format_contains_the_revision_and_the_previous_values_of_a_conversion() -> None:
    facts = CONVERSION | {"revision": 2, "previous_status": "pending", "previous_value": "10.00"}
    assert body("xoxzo", facts)["conversion"] == {
        "conversion_id": "v1",
        "action": "sale",
        "status": "approved",
        "disposition": "positive",
        "value": "-19.90",
        "currency": "EUR",
        "transaction_id": "t-1",
        "revision": 2,
        "previous_status": "pending",
        "previous_value": "10.00",
    }
    assert "conversion" not in body("xoxzo", CLICK)
    infobip = body("infobip", facts)["conversion"]
    assert (infobip["revision"], infobip["previousStatus"], infobip["previousValue"]) == (2, "pending", "10.00")
    for values in (body("scg", facts)["event"]["fld-val-list"], body("json", facts)):
        assert (values["revision"], values["previous_status"], values["previous_value"]) == (2, "pending", "10.00")


def test_the_infobip_body_of_a_click_equals_the_documented_click_notification() -> None:
    assert body("infobip", CLICK | {"topic": "click", "metadata": {"order": 7}}) == {
        "notificationType": "CLICKED",
        "recipient": "14085550100",
        "url": "https://shop.example/a?b=1",
        "sendDateTime": 1795176000000,
        "messageId": "uFAbXDeSXGMzgK5Qoxw5g2",
        "bulkId": "9E0qhwPclVXnqMjbaYF4J5",
        "callbackData": '{"order":7}',
        "recipientInfo": {"deviceType": None, "os": None, "deviceName": None},
        "geoLocationInfo": {"countryName": None, "city": None},
        "applicationId": "631",
        "entityId": "92",
        "click": {
            "clickId": "c1",
            "label": None,
            "firstForMessage": True,
            "firstForLink": True,
            "clickNumber": 1,
            "secondsSinceSent": 44,
            "secondsSinceDelivered": 42,
            "verdict": "human",
            "verdictReason": None,
        },
        "eventId": "evt_1",
    }


def test_the_infobip_body_contains_the_callback_data_of_the_message_request() -> None:
    assert body("infobip", CLICK | {"metadata": {"callbackData": "order 7"}})["callbackData"] == "order 7"
    assert body("infobip", CLICK | {"metadata": {"callbackData": "x", "b": 1}})["callbackData"] == '{"callbackData":"x","b":1}'


def test_the_infobip_bodies_of_conversions_and_reports_have_the_same_structure() -> None:
    conversion = body("infobip", CONVERSION)
    assert (conversion["notificationType"], conversion["processKey"]) == ("CONVERTED", "A37D")
    assert conversion["conversion"]["value"] == "-19.90"
    report = body("infobip", CLICK | {"topic": "delivery", "report_status": "DELIVRD"})
    assert (report["notificationType"], report["status"]["reportStatus"]) == ("DELIVERY_REPORT", "DELIVRD")
    assert report["doneAt"] == "2026-11-20T11:59:18.000Z"


@in_one_test
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("topic", [*TOPICS, None])
def test_a_body_of_every_format_can_be_built_if_values_of_the_event_are_absent(format: str, topic: str | None) -> None:
    assert body(format, {} if topic is None else {"topic": topic})
    assert body(format, dict.fromkeys(FACTS) | {"topic": topic})


@given(
    st.sampled_from(FORMATS),
    st.sampled_from(TOPICS),
    st.dictionaries(st.sampled_from(FACTS), st.text(st.characters(codec="utf-8"))),
)
def test_a_body_is_valid_json_whatever_text_the_values_of_the_event_contain(format: str, topic: str, facts: dict[str, str]) -> None:
    assert body(format, facts | {"topic": topic})
