"""Tests of the delivery reports in the HTTP calls of gateways: where their values are, and which of them cannot be read."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from shortener.gateways.http import HttpSettings
from shortener.gateways.report_calls import MAX_ITEMS, ReportCall, read_reports
from shortener.gateways.submission import GatewayReport
from shortener.gateways.templates import MAX_VALUE_CHARACTERS
from shortener.gateways.unrecorded_reports import LossReason
from tests.conftest import NOON

FIELDS = {"status": "state.name", "id": "id", "message_id": "own", "timestamp": "at", "price": "cost.0", "error_code": "err"}


def read(data: Any = None, parameters: dict[str, Any] | None = None, reference: str | None = None, **values: Any) -> ReportCall:
    settings = HttpSettings(url="https://gw.example/send", body='{"t":"{text}"}', **{"report_fields": FIELDS, **values})
    return read_reports(settings, parameters or {}, data, reference, NOON)


def test_the_values_of_a_delivery_report_are_read_from_nested_json() -> None:
    item = {"state": {"name": " DELIVRD "}, "id": 17, "own": "m-1", "at": NOON.isoformat(), "cost": ["0.03"], "err": False}
    [report] = read(item).reports
    assert (report.word, report.gateway_message_id, report.message_id) == ("DELIVRD", "17", "m-1")
    assert (report.at, report.price, report.error_code) == (NOON, "0.03", "false")


def test_the_values_of_a_delivery_report_are_read_from_the_parameters_unless_the_json_contains_them() -> None:
    parameters = {"state.name": "SENT", "id": "of the query"}
    assert read(None, parameters).reports == [GatewayReport("SENT", gateway_message_id="of the query")]
    assert read({"id": "of the body"}, parameters).reports == [GatewayReport("SENT", gateway_message_id="of the body")]


def test_the_reference_in_the_path_of_a_report_call_takes_precedence_over_the_reference_in_the_report() -> None:
    fields = {"status": "s", "reference": "ref"}
    item = {"s": "SENT", "ref": "0abc"}
    assert [one.reference for one in read(item, report_fields=fields).reports] == ["0abc"]
    assert [one.reference for one in read(item, reference="0def", report_fields=fields).reports] == ["0def"]


@pytest.mark.parametrize("at", ["", "yesterday", "9" * 400, {"seconds": 1}, None])
def test_a_delivery_report_without_a_valid_time_is_read_without_a_time(at: Any) -> None:
    assert read({"state": {"name": "SENT"}, "id": "x1", "at": at}).reports == [GatewayReport("SENT", gateway_message_id="x1")]


def test_a_time_in_seconds_in_a_delivery_report_is_read_as_a_time_before_now() -> None:
    at = NOON - timedelta(hours=1)
    [report] = read({"state": {"name": "SENT"}, "id": "x1", "at": int(at.timestamp())}).reports
    assert report.at == at


def test_a_long_value_in_a_delivery_report_is_cut() -> None:
    [report] = read({"state": {"name": "SENT"}, "id": "x" * 10_000}).reports
    assert report.gateway_message_id == "x" * MAX_VALUE_CHARACTERS


@pytest.mark.parametrize(
    ("data", "reference", "lost"),
    [
        (None, "0abc", {LossReason.NO_STATUS: 1}),
        ({"state": "SENT", "id": "x1"}, None, {LossReason.NO_STATUS: 1}),
        ({"state": {"name": " "}, "id": "x1"}, None, {LossReason.NO_STATUS: 1}),
        ({"state": {"name": "SENT"}, "id": ""}, None, {LossReason.NO_ID: 1}),
        ([1, None, "x", [], {"state": {"name": "SENT"}}], None, {LossReason.NO_STATUS: 4, LossReason.NO_ID: 1}),
        ([], None, {}),
    ],
)
def test_a_delivery_report_without_a_status_or_an_id_is_unreadable(
    data: Any, reference: str | None, lost: dict[LossReason, int]
) -> None:
    assert read(data, reference=reference) == ReportCall([], lost)


def test_an_unreadable_delivery_report_does_not_affect_the_other_reports_of_its_call() -> None:
    items = [{"state": {"name": "SENT"}, "id": "x1"}, {"id": "x2"}, {"state": {"name": "SENT"}, "id": "x3"}]
    call = read(items)
    assert [one.gateway_message_id for one in call.reports] == ["x1", "x3"]
    assert call.unreadable == {LossReason.NO_STATUS: 1}


def test_at_most_1000_delivery_reports_of_one_call_are_read_and_the_others_are_counted() -> None:
    call = read([{"state": {"name": "SENT"}, "id": f"x{number}"} for number in range(MAX_ITEMS + 3)])
    assert [one.gateway_message_id for one in call.reports] == [f"x{number}" for number in range(1000)]
    assert call.unreadable == {LossReason.TOO_MANY: 3}


def test_the_list_of_delivery_reports_may_be_a_member_of_the_json() -> None:
    report = {"state": {"name": "SENT"}, "id": "x1"}
    expected = [GatewayReport("SENT", gateway_message_id="x1")]
    assert read({"data": {"results": [report]}}, report_items="data.results").reports == expected
    assert read([report], report_items="data.results").reports == expected, "the body itself is a list"
    for data in ({"results": [report]}, {"data": {"results": report}}, {"data": None}):
        assert read(data, report_items="data.results") == ReportCall([], {LossReason.NO_LIST: 1})
