"""Tests of the metadata of conversion reports: its size is limited, and it contains no credentials."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest

from shortener.conversions.metadata import MAX_METADATA_BYTES, MAX_METADATA_DEPTH, REMOVED, storable_parameters
from shortener.conversions.parsing import ConversionReport, RepeatedValues, parse_conversion

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def parse(**parameters: Any) -> ConversionReport:
    return parse_conversion(parameters, NOW)


def test_metadata_above_4_kib_of_json_is_cut_with_a_warning() -> None:
    fits = "x" * (MAX_METADATA_BYTES - len('{"a":""}'))
    report = parse(message_id="m", a=fits)
    assert (report.metadata, report.warnings) == ({"a": fits}, ())
    report = parse(message_id="m", small="kept", ref="ü" * 4100)
    assert report.metadata is not None
    assert report.metadata["small"] == "kept"
    assert MAX_METADATA_BYTES - 3 <= len(orjson.dumps(report.metadata)) <= MAX_METADATA_BYTES
    assert [warning.partition(":")[0] for warning in report.warnings] == ["ref"]


def test_metadata_of_many_or_nested_parameters_is_cut_to_4_kib_of_json() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    many = {f"parameter {number}": "x" * number for number in range(300)}
    report = parse(message_id="m", deep=deep, list=["y" * 5000], **many)
    assert len(orjson.dumps(report.metadata)) <= MAX_METADATA_BYTES
    assert any(warning.startswith("deep:") for warning in report.warnings)


@pytest.mark.parametrize("number", ["12345678901234567.123456", "0.12345678901234567890", "1e400"])
def test_a_json_number_that_a_float_cannot_contain_is_stored_as_text_in_the_metadata(number: str) -> None:
    metadata = parse(message_id="m", short=Decimal("12.50"), long=Decimal(number)).metadata
    assert metadata is not None
    assert (metadata["short"], Decimal(metadata["long"])) == (12.5, Decimal(number))


def test_credentials_are_removed_from_the_stored_parameters_of_a_conversion_report() -> None:
    key = "tt_" + "a" * 43
    assert parse(message_id="m", note=f"token {key}").metadata == {"note": f"token {REMOVED}"}
    refused = storable_parameters({"token": "x", "api_key": "y", "a": key, "sub": RepeatedValues(["1", "2"])})
    assert refused == {"token": REMOVED, "api_key": REMOVED, "a": REMOVED, "sub": ["1", "2"]}


def test_nested_credentials_are_removed_from_the_stored_parameters_of_a_refused_report() -> None:
    login = {"user": "u", "password": "hunter2", "more": [{"api_key": {"id": "hunter2"}}]}
    deep: Any = {"password": "hunter2"}
    for _ in range(MAX_METADATA_DEPTH + 5):
        deep = [deep]
    stored = storable_parameters({"login": login, "deep": deep, "list": RepeatedValues(["a", {"Secret": "hunter2"}])})
    assert stored == {
        "login": {"user": "u", "password": REMOVED, "more": [{"api_key": REMOVED}]},
        "list": ["a", {"Secret": REMOVED}],
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"message_id":"m","password":"hunter2",',
        '{"message_id":"m","password" : "hun ter2',
        r"{\"password\":\"hunter2\"}",
        "{'password': 'hun ter2'}",
        "https://a.example/?x=1&access_token=hunter2&y=2",
        "access_token%3Dhunter2",
        "see https://user:hunter2@a.example/x",
        "X-Api-Token: hunter2",
        "Authorization: Bearer hunter2",
        "<login><password>hunter2</password></login>",
        "password = hunter2; path=/",
    ],
)
def test_credentials_inside_a_text_are_removed_from_the_stored_parameters_of_a_refused_report(text: str) -> None:
    (stored,) = storable_parameters({"(body)": text}).values()
    assert REMOVED in stored
    assert "hun" not in stored
    assert "ter2" not in stored
    (name,) = storable_parameters({text: ""})
    assert "ter2" not in name


def test_a_text_without_credentials_is_stored_unchanged_with_a_refused_report() -> None:
    texts = {"a": "token", "b": "the password is wrong", "c": "https://a.example/?x=1", "d": "tokens"}
    assert storable_parameters(texts) == texts
