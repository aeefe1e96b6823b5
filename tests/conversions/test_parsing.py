"""Tests of the validation of conversion reports: an invalid id causes the rejection of the report, and an invalid value causes a
warning.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shortener.conversions.metadata import MAX_METADATA_BYTES
from shortener.conversions.parsing import ConversionParameters, ConversionReport, RepeatedValues, parse_conversion
from shortener.errors import ApiError, ErrorCode

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
NAMES = tuple(ConversionParameters.model_fields)


def parse(**parameters: Any) -> ConversionReport:
    return parse_conversion(parameters, NOW)


def rejection(**parameters: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        parse(**parameters)
    return raised.value


def test_all_parameters_of_a_conversion_report_are_parsed() -> None:
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
        has_timestamp=True,
    )


@pytest.mark.parametrize("name", ["subid", "clickid", "cid", "aff_sub", "ref_id", "externalId", "cnv_id"])
def test_the_error_for_a_missing_id_mentions_a_parameter_that_has_this_id_in_another_system(name: str) -> None:
    (detail,) = rejection(**{name: "x", "payout": "3"}).details
    assert (detail.field, name in detail.reason, "use click_id" in detail.reason) == ("message_id", True, True)
    (plain,) = rejection(payout="3").details
    assert plain.reason == "is required if there is no click_id"


def test_empty_parameters_of_a_conversion_report_count_as_absent() -> None:
    empty = {name: " " for name in NAMES if name != "message_id"}
    assert parse(message_id="m", **empty) == parse(message_id="m") == ConversionReport(at=NOW, message_id="m", action="conversion")


def test_a_json_number_is_parsed_like_the_same_number_in_a_text() -> None:
    report = parse(message_id=17, transaction_id=12345, value=Decimal("12.5"), timestamp=1795172400)
    assert (report.message_id, report.transaction_id, report.value) == ("17", "12345", Decimal("12.5"))
    assert report.at == NOW - timedelta(hours=1)


# These tests check parameters that identify the conversion: an invalid one rejects the report.


def test_a_conversion_report_without_message_id_and_click_id_is_rejected() -> None:
    error = rejection(action="sale")
    assert (error.code, error.details[0].field) == (ErrorCode.INVALID_REQUEST, "message_id")


@pytest.mark.parametrize(
    "parameters",
    [
        {"message_id": "m" * 256},
        {"message_id": "m\x00"},
        {"message_id": True},
        {"message_id": {"id": "m"}},
        {"message_id": RepeatedValues(["m", "n"])},
        {"message_id": "m", "transaction_id": ["1"]},
        {"message_id": "m", "action": RepeatedValues(["a", "b"])},
        {"click_id": "c" * 256},
    ],
)
def test_a_conversion_report_with_an_ambiguous_id_action_or_transaction_id_is_rejected(parameters: dict[str, Any]) -> None:
    assert rejection(**parameters).code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("name", ["message_id", "click_id", "transaction_id", "status", "action"])
def test_an_unexpanded_placeholder_in_an_id_action_or_status_is_rejected_with_its_parameter_name(name: str) -> None:
    error = rejection(**{"message_id": "m", name: "#foo#"})
    assert (error.code, [detail.field for detail in error.details]) == (ErrorCode.UNEXPANDED_PLACEHOLDER, [name])
    assert "#foo#" in error.details[0].reason


def test_a_repeated_parameter_whose_values_are_equal_or_empty_has_one_value() -> None:
    report = parse(message_id=RepeatedValues(["m", "m"]), click_id=RepeatedValues(["", "c"]))
    assert (report.message_id, report.click_id, report.warnings) == ("m", "c", ())


def test_actions_and_transaction_ids_are_compared_without_regard_to_case() -> None:
    one, other = (
        parse(message_id="m", action="Install", transaction_id="ABC"),
        parse(message_id="m", action="install", transaction_id="abc"),
    )
    assert (one.action_key, one.transaction_key) == (other.action_key, other.transaction_key)
    assert (one.action, one.transaction_id) == ("Install", "ABC")


def test_two_long_transaction_ids_stay_distinct_when_they_are_shortened() -> None:
    long = "t" * 300
    one, other = parse(message_id="m", transaction_id=long + "1"), parse(message_id="m", transaction_id=long + "2")
    assert len(one.transaction_id) == 255
    assert one.transaction_id != other.transaction_id
    assert one.warnings == ("transaction_id: was shortened to 255 characters",)
    assert parse(message_id="m", transaction_id=long.upper() + "1").transaction_key == one.transaction_key


# These tests check all other parameters: an invalid value is stored as text, with a warning.


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("value", "free", "free"),
        ("value", "[payout]", "[payout]"),
        ("value", True, True),
        ("value", {"amount": 1}, {"amount": 1}),
        ("value", "1" * 65, "1" * 65),
        ("currency", "euros and cents", "euros and cents"),
        ("timestamp", "soon", "soon"),
        ("timestamp", "2030-01-01", "2030-01-01"),
        ("disposition", "maybe", "maybe"),
    ],
)
def test_a_parameter_that_cannot_be_parsed_is_stored_as_text_with_a_warning(name: str, value: Any, stored: Any) -> None:
    report = parse(message_id="m", **{name: value})
    assert report.metadata == {name: stored}
    assert [warning.partition(":")[0] for warning in report.warnings] == [name]
    assert (report.value, report.currency, report.at, report.disposition) == (None, None, NOW, None)


@pytest.mark.parametrize("name", ["payout", "Amount", "revenue"])
def test_a_report_whose_amount_has_the_name_of_another_system_gets_a_warning(name: str) -> None:
    report = parse(message_id="m", **{name: "7"})
    assert (report.value, report.metadata) == (None, {name: "7"})
    assert report.warnings == (f"{name}: was stored as metadata and does not count; send an amount as value",)
    assert parse(message_id="m", value="7", **{name: "7"}).warnings == ()


def test_an_amount_with_an_invalid_currency_is_stored_as_text_only() -> None:
    report = parse(message_id="m", value="12.50", currency="bottle caps!")
    assert (report.value, report.currency) == (None, None)
    assert report.metadata == {"value": "12.50", "currency": "bottle caps!"}


def test_a_currency_that_is_not_iso_4217_is_stored_with_a_warning() -> None:
    report = parse(message_id="m", value="1", currency="usdt")
    assert (report.value, report.currency) == (Decimal(1), "USDT")
    assert report.warnings == ("currency: USDT is not a code of ISO 4217",)


def test_the_currency_in_an_amount_is_used_only_if_the_currency_parameter_is_absent() -> None:
    assert parse(message_id="m", value="€12,50").currency == "EUR"
    report = parse(message_id="m", value="€12,50", currency="USD")
    assert (report.value, report.currency) == (Decimal("12.50"), "USD")
    assert report.warnings == ("value: names the currency EUR; USD was used",)


@pytest.mark.parametrize(
    ("status", "disposition", "expected"),
    [
        ("approved", None, "positive"),
        ("Charge-Back", None, "negative"),
        ("lead", None, None),
        ("something", None, None),
        ("approved", "negative", "negative"),
        (None, "NEGATIVE", "negative"),
        ("rejected", "pending", "negative"),
    ],
)
def test_the_parameter_disposition_or_the_status_word_sets_the_disposition_of_a_conversion(
    status: str | None, disposition: str | None, expected: str | None
) -> None:
    assert parse(message_id="m", status=status, disposition=disposition).disposition == expected


def test_the_last_value_of_a_repeated_parameter_is_used_with_a_warning() -> None:
    report = parse(message_id="m", value=RepeatedValues(["1", "2"]))
    assert (report.value, report.warnings) == (Decimal(2), ("value: occurs several times; the last value was used",))


def test_a_conversion_report_with_long_texts_or_nul_characters_is_accepted() -> None:
    report = parse(message_id="m", status="s" * 100, transaction_id="t\x001", note="a\x00b\ud800")
    assert (report.status, report.transaction_id, report.metadata) == ("s" * 64, "t1", {"note": "ab?"})
    assert len(report.warnings) == 2


# These tests check the metadata of conversion reports.


def test_the_metadata_of_a_conversion_report_is_stored_unchanged() -> None:
    metadata = {"sub1": RepeatedValues(["a", "b"]), "deep": {"er": [1, None, Decimal("2.5")]}, "": " ü ", "text": "Hello {name}"}
    assert parse(message_id="m", **metadata).metadata == {**metadata, "sub1": ["a", "b"], "deep": {"er": [1, None, 2.5]}}


@pytest.mark.parametrize(("value", "text"), [({"amount": 5}, "an object"), ([["5"]], "a list"), (True, "true or false")])
def test_the_warning_for_a_value_that_is_no_text_or_number_names_its_kind_of_json(value: Any, text: str) -> None:
    assert parse(message_id="m", value=value).warnings == (f"value: {text} is not a text or a number; it was stored as metadata",)


# These are property-based tests with generated conversion reports.

_PLAIN = st.text(st.characters(codec="utf-8"), max_size=80)
_VALUES = st.one_of(
    _PLAIN,
    st.integers(),
    st.booleans(),
    st.none(),
    st.decimals(allow_nan=True, allow_infinity=True),
    st.lists(st.text(max_size=5), max_size=3),
    st.lists(_PLAIN, min_size=1, max_size=3).map(RepeatedValues),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*NAMES, "sub1", "ü\x00"]), _VALUES))
def test_a_conversion_report_can_be_rejected_only_because_of_an_id_action_transaction_id_or_status(
    parameters: dict[str, Any],
) -> None:
    rejected: set[str] = set()
    report = ConversionReport(NOW)
    try:
        report = parse_conversion(parameters, NOW)
    except ApiError as error:
        rejected = {detail.field for detail in error.details}
    assert rejected <= {"message_id", "click_id", "action", "transaction_id", "status"}
    assert rejected or report.message_id or report.click_id
    stored = orjson.dumps(report.metadata)
    assert b"\\u0000" not in stored
    assert len(stored) <= MAX_METADATA_BYTES


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["value", "currency", "timestamp", "disposition", "sub1", "sub2"]), _VALUES))
def test_a_conversion_report_with_a_valid_message_id_is_never_rejected_because_of_other_parameters(
    parameters: dict[str, Any],
) -> None:
    report = parse_conversion({"message_id": "m", **parameters}, NOW)
    for name in ("value", "currency"):
        text = parameters.get(name)
        if isinstance(text, str) and text.strip() and getattr(report, name) is None:
            assert report.metadata is not None
            assert name in report.metadata, "the input is stored unchanged"
            assert report.warnings
