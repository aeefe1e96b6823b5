import contextlib
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shortener.conversions.parsing import (
    MAX_METADATA_BYTES,
    ConversionParameters,
    ConversionReport,
    is_unexpanded,
    parse_amount,
    parse_conversion,
)
from shortener.errors import ApiError, ErrorCode

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def parse(**parameters: Any) -> ConversionReport:
    return parse_conversion(ConversionParameters.model_validate(parameters), NOW)


def rejection(**parameters: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        parse_conversion(ConversionParameters.model_validate(parameters), NOW)
    return raised.value


def test_all_parameters_are_parsed() -> None:
    assert parse(
        message_id="m",
        click_id="c",
        action="sale",
        status="approved",
        disposition="Positive",
        value="12.50",
        currency="eur",
        transaction_id="t-1",
        timestamp="2026-11-20T11:00:00",
        sub1="x",
    ) == ConversionReport(
        at=NOW - timedelta(hours=1),
        message_id="m",
        click_id="c",
        action="sale",
        transaction_id="t-1",
        status="approved",
        disposition="positive",
        value=Decimal("12.50"),
        currency="EUR",
        metadata={"sub1": "x"},
    )


def test_empty_parameters_count_as_absent() -> None:
    empty = {name: " " for name in ConversionParameters.model_fields if name != "message_id"}
    assert parse(message_id="m", **empty) == parse(message_id="m") == ConversionReport(at=NOW, message_id="m", action="conversion")


def test_a_json_number_is_parsed_like_its_text() -> None:
    report = parse(message_id=17, transaction_id=12345, value=12.5, timestamp=1795172400)
    assert (report.message_id, report.transaction_id, report.value) == ("17", "12345", Decimal("12.5"))
    assert report.at == NOW - timedelta(hours=1)


def test_a_json_number_that_a_float_cannot_represent_is_rejected() -> None:
    assert parse(message_id="m", value=1234567890.12345).value == Decimal("1234567890.12345")
    with pytest.raises(ValidationError, match="send it as text"):
        parse(message_id="m", value=12345678901234.5678)


@pytest.mark.parametrize("value", [True, {"amount": 1}, ["1", "1"], "\x00", "1" * 65])
def test_a_parameter_that_is_not_one_short_text_or_number_is_rejected(value: Any) -> None:
    with pytest.raises(ValidationError):
        parse(message_id="m", value=value)


def test_a_message_id_or_a_click_id_is_required() -> None:
    error = rejection(action="sale")
    assert (error.code, error.details[0].field) == (ErrorCode.INVALID_REQUEST, "message_id")


def test_every_invalid_parameter_is_named() -> None:
    error = rejection(value="1,234.50", currency="EURO", disposition="maybe", timestamp="soon")
    assert [detail.field for detail in error.details] == ["message_id", "value", "currency", "disposition", "timestamp"]


# Amounts


@pytest.mark.parametrize(
    ("text", "amount"),
    [("12.50", "12.50"), ("-3", "-3"), ("+.5", "0.5"), ("7.", "7"), ("0", "0"), ("9" * 18 + ".999999", "9" * 18 + ".999999")],
)
def test_amounts_are_parsed_exactly(text: str, amount: str) -> None:
    assert parse_amount(text) == Decimal(amount)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1,234.50", "comma"),
        ("12,50", "comma"),
        ("1e3", "decimal such as"),
        ("NaN", "decimal such as"),
        ("Infinity", "decimal such as"),
        ("1_000", "decimal such as"),
        ("$5", "decimal such as"),
        ("٣", "decimal such as"),
        (".", "decimal such as"),
        ("9" * 19, "18 digits"),
        ("0.1234567", "6 after"),
    ],
)
def test_other_formats_of_amounts_are_rejected_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_amount(text)


@given(st.decimals(min_value=-(10**18) + 1, max_value=10**18 - 1, places=6))
def test_any_amount_is_parsed_without_a_change(amount: Decimal) -> None:
    assert parse(message_id="m", value=format(amount, "f")).value == amount


# Unexpanded placeholders


@pytest.mark.parametrize(
    "text",
    [
        "{click_id}",
        "{{click_id}}",
        "{{ click.id }}",
        "${CLICK_ID}",
        "$%7Bclick_id%7D",
        "%7Bclick_id%7D",
        "%7b%7bclick_id%7d%7d",
        "{sub-1}",
        "{cost:2}",
        "order-{order_id}",
        "[CLICK_ID]",
        "[[click_id]]",
        "%5Bclick_id%5D",
    ],
)
def test_an_unexpanded_placeholder_is_recognised_in_every_style(text: str) -> None:
    assert is_unexpanded(text)


@pytest.mark.parametrize(
    "text", ["", "m-1", "{}", "[]", "a[1]", "items[blue]", "{abcdef00-89ab-4def-8123-456789abcdef}", '{"a": 1}', "100%", "{5}"]
)
def test_text_that_only_resembles_a_placeholder_is_accepted(text: str) -> None:
    assert not is_unexpanded(text)


@pytest.mark.parametrize("name", [name for name in ConversionParameters.model_fields if name != "message_id"])
def test_a_placeholder_in_any_parameter_is_rejected(name: str) -> None:
    error = rejection(**{"message_id": "m", name: "%7Bfoo%7D"})
    assert (error.code, [detail.field for detail in error.details]) == (ErrorCode.UNEXPANDED_PLACEHOLDER, [name])


def test_metadata_may_contain_a_placeholder_but_not_consist_of_one() -> None:
    assert rejection(message_id="m", sub1="{sub1}").code is ErrorCode.UNEXPANDED_PLACEHOLDER
    assert parse(message_id="m", text="Hello {name}", tags="[promo]").metadata == {"text": "Hello {name}", "tags": "[promo]"}


# Metadata


def test_metadata_is_stored_unchanged() -> None:
    metadata = {"sub1": ["a", "b"], "deep": {"er": [1, None, 2.5]}, "": " ü "}
    assert parse(message_id="m", **metadata).metadata == metadata


def test_metadata_above_4_kib_of_json_is_rejected() -> None:
    fits = "x" * (MAX_METADATA_BYTES - len('{"a":""}'))
    assert parse(message_id="m", a=fits).metadata == {"a": fits}
    assert rejection(message_id="m", a=fits + "x").details[0].field == "metadata"


def test_metadata_with_nul_or_deep_nesting_is_rejected() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    for metadata in ({"a": "\x00"}, {"a": deep}):
        assert rejection(message_id="m", **metadata).details[0].field == "metadata"


@given(st.dictionaries(st.sampled_from([*ConversionParameters.model_fields, "sub1"]), st.text(max_size=30)))
def test_any_text_is_parsed_or_rejected_without_another_error(parameters: dict[str, str]) -> None:
    with contextlib.suppress(ValidationError, ApiError):
        report = parse(**parameters)
        assert report.message_id or report.click_id
