"""What trackers send, checked and put into one form."""

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


def taken(**parameters: Any) -> ConversionReport:
    return parse_conversion(ConversionParameters.model_validate(parameters), NOW)


def refused(**parameters: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        parse_conversion(ConversionParameters.model_validate(parameters), NOW)
    return raised.value


def test_everything_a_tracker_can_say() -> None:
    assert taken(
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


def test_empty_parameters_are_absent() -> None:
    empty = {name: " " for name in ConversionParameters.model_fields if name != "message_id"}
    assert taken(message_id="m", **empty) == taken(message_id="m") == ConversionReport(at=NOW, message_id="m", action="conversion")


def test_a_json_number_is_its_text() -> None:
    intake = taken(message_id=17, transaction_id=12345, value=12.5, timestamp=1795172400)
    assert (intake.message_id, intake.transaction_id, intake.value) == ("17", "12345", Decimal("12.5"))
    assert intake.at == NOW - timedelta(hours=1)


def test_a_json_number_that_reading_may_have_changed_is_refused() -> None:
    assert taken(message_id="m", value=1234567890.12345).value == Decimal("1234567890.12345")
    with pytest.raises(ValidationError, match="send it as text"):
        taken(message_id="m", value=12345678901234.5678)


@pytest.mark.parametrize("value", [True, {"amount": 1}, ["1", "1"], "\x00", "1" * 65])
def test_a_parameter_is_one_short_text_or_number(value: Any) -> None:
    with pytest.raises(ValidationError):
        taken(message_id="m", value=value)


def test_a_message_or_a_click_is_required() -> None:
    error = refused(action="sale")
    assert (error.code, error.details[0].field) == (ErrorCode.INVALID_REQUEST, "message_id")


def test_every_wrong_parameter_is_named() -> None:
    error = refused(value="1,234.50", currency="EURO", disposition="maybe", timestamp="soon")
    assert [detail.field for detail in error.details] == ["message_id", "value", "currency", "disposition", "timestamp"]


# Amounts


@pytest.mark.parametrize(
    ("text", "amount"),
    [("12.50", "12.50"), ("-3", "-3"), ("+.5", "0.5"), ("7.", "7"), ("0", "0"), ("9" * 18 + ".999999", "9" * 18 + ".999999")],
)
def test_amounts_are_exact(text: str, amount: str) -> None:
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
def test_other_spellings_of_amounts_are_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_amount(text)


@given(st.decimals(min_value=-(10**18) + 1, max_value=10**18 - 1, places=6))
def test_no_amount_changes_on_its_way_in(amount: Decimal) -> None:
    assert taken(message_id="m", value=format(amount, "f")).value == amount


# Placeholders that nobody filled in


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
def test_what_only_looks_like_a_placeholder_is_none(text: str) -> None:
    assert not is_unexpanded(text)


@pytest.mark.parametrize("name", [name for name in ConversionParameters.model_fields if name != "message_id"])
def test_no_parameter_may_hold_a_placeholder(name: str) -> None:
    error = refused(**{"message_id": "m", name: "%7Bfoo%7D"})
    assert (error.code, [detail.field for detail in error.details]) == (ErrorCode.UNEXPANDED_PLACEHOLDER, [name])


def test_metadata_may_mention_a_placeholder_but_not_be_one() -> None:
    assert refused(message_id="m", sub1="{sub1}").code is ErrorCode.UNEXPANDED_PLACEHOLDER
    assert taken(message_id="m", text="Hello {name}", tags="[promo]").metadata == {"text": "Hello {name}", "tags": "[promo]"}


# Metadata


def test_metadata_is_kept_as_it_came() -> None:
    metadata = {"sub1": ["a", "b"], "deep": {"er": [1, None, 2.5]}, "": " ü "}
    assert taken(message_id="m", **metadata).metadata == metadata


def test_metadata_is_capped_at_4_kib_of_json() -> None:
    fits = "x" * (MAX_METADATA_BYTES - len('{"a":""}'))
    assert taken(message_id="m", a=fits).metadata == {"a": fits}
    assert refused(message_id="m", a=fits + "x").details[0].field == "metadata"


def test_metadata_holds_no_nul_and_is_not_bottomless() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    for metadata in ({"a": "\x00"}, {"a": deep}):
        assert refused(message_id="m", **metadata).details[0].field == "metadata"


@given(st.dictionaries(st.sampled_from([*ConversionParameters.model_fields, "sub1"]), st.text(max_size=30)))
def test_any_text_is_taken_or_refused_by_name(parameters: dict[str, str]) -> None:
    with contextlib.suppress(ValidationError, ApiError):
        intake = taken(**parameters)
        assert intake.message_id or intake.click_id
