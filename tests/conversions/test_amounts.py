"""Tests of the parser for amounts and currency codes in the notations of affiliate networks."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.conversions.amounts import RULES, Rule, parse_amount, parse_currency
from tests.one_test import in_one_test


@in_one_test
@pytest.mark.parametrize("rule", RULES, ids=[rule.text for rule in RULES])
def test_the_example_of_each_rule_for_amounts_is_parsed_as_documented(rule: Rule) -> None:
    text, amount = rule.text, rule.amount
    if amount is None:
        with pytest.raises(ValueError, match=r"\w"):
            parse_amount(text)
    else:
        assert str(parse_amount(text).value) == amount


@in_one_test
@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("+.5", "0.5"),
        ("7.", "7"),
        ("0", "0"),
        ("-0", "0"),
        ("9" * 18 + ".999999", "9" * 18 + ".999999"),
        ("−3", "-3"),
        ("3-", "-3"),
        ("(3)", "-3"),
        ("-$3", "-3"),
        ("($1,234.50)", "-1234.50"),
        ("$ 12.50", "12.50"),
        ("12.50€", "12.50"),
        ("US$ 3", "3"),
        ("USD 12.50", "12.50"),
        ("usd12.50", "12.50"),
        ("12,5", "12.5"),
        ("12,3456", "12.3456"),
        ("1234,567", "1234.567"),
        ("1'234.50", "1234.50"),
        ("1’234’567", "1234567"),
        ("1\u00a0234,50", "1234.50"),
        ("1\u202f234", "1234"),
        ("\u202a12.50\u202c", "12.50"),
        ("1.234.567,8", "1234567.8"),
        ("1E+2", "100"),
        ("1e-2", "0.01"),
        ("0.1000000000000001", "0.1"),
        ("12.345678", "12.345678"),
        ("12.3456789", "12.345679"),
        ("٣", "3"),
    ],
)
def test_amounts_in_uncommon_notations_are_parsed(text: str, amount: str) -> None:
    assert format(parse_amount(text).value, "f") == amount


@in_one_test
@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        ",",
        "-",
        "1_000",
        "1 23",
        "1,,2",
        "1.2.3",
        "1,2,3",
        "--1",
        "Infinity",
        "sNaN",
        "0x10",
        "1e999",
        "1/2",
        "12 apples",
        "$",
        "EUR",
    ],
)
def test_a_text_that_is_not_a_number_or_has_two_meanings_is_rejected_as_an_amount(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_amount(text)


def test_an_ambiguous_or_rounded_amount_causes_a_warning() -> None:
    assert "separates thousands" in parse_amount("1,234").warning
    assert "rounded" in parse_amount("0.12345678").warning
    assert parse_amount("29.990000000000002").warning == ""
    assert parse_amount("1,234.50").warning == ""


@given(st.decimals(min_value=-(10**18) + 1, max_value=10**18 - 1, places=6))
def test_a_plain_decimal_is_parsed_to_the_same_number(amount: Decimal) -> None:
    assert parse_amount(format(amount, "f")).value == amount


@given(
    st.decimals(min_value=0, max_value=10**12, places=2),
    st.sampled_from([(",", "."), (".", ","), (" ", ","), ("'", "."), ("\u00a0", ",")]),
    st.sampled_from(["{}", "${}", "{} EUR", "€{}", "-{}", "({})"]),
)
def test_an_amount_with_thousands_separators_and_two_decimals_is_parsed(
    amount: Decimal, marks: tuple[str, str], frame: str
) -> None:
    thousands, point = marks
    text = f"{amount:,.2f}".replace(",", "\0").replace(".", point).replace("\0", thousands)
    expected = -amount if frame[0] in "-(" else amount
    assert parse_amount(frame.format(text)).value == expected


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15))
def test_a_float_is_parsed_and_rounded_to_six_decimals(number: float) -> None:
    assert abs(float(parse_amount(repr(number)).value) - number) <= max(abs(number) * 1e-12, 5e-7)


#: Texts that often contain an amount.
NEAR_AMOUNTS = st.lists(
    st.sampled_from(["1", "234", "0.000001", "9" * 18, "e", "E+2", "e-9", "USD", "€", "$", "\u00a0", *"+-−().,' _٣"]), max_size=5
).map("".join)


@given(NEAR_AMOUNTS | st.text(max_size=40))
def test_any_text_is_parsed_to_an_amount_within_the_limits_or_raises_value_error(text: str) -> None:
    try:
        value = parse_amount(text).value
    except ValueError:
        return
    assert value.is_finite()
    assert abs(value) < 10**18
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    assert exponent >= -6


@pytest.mark.parametrize(
    ("text", "code", "warns"),
    [
        ("eur", "EUR", False),
        (" usd ", "USD", False),
        ("USDT", "USDT", True),
        ("btc", "BTC", True),
        ("€", "EUR", False),
        ("US$", "USD", False),
    ],
)
def test_currency_codes_and_symbols_are_parsed(text: str, code: str, warns: bool) -> None:
    found, warning = parse_currency(text)
    assert (found, bool(warning)) == (code, warns)


@pytest.mark.parametrize("text", ["$", "x", "euro-cents", "ABCDEFGHIJK", "ÄÖÜ"])
def test_a_text_that_is_not_a_currency_code_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="currency code"):
        parse_currency(text)


@given(st.decimals(min_value=0, max_value=10**19, allow_nan=False, allow_infinity=False).map(lambda value: format(value, "f")))
def test_an_amount_without_a_sign_has_the_same_value_as_the_same_amount_with_a_plus_sign(text: str) -> None:
    try:
        signed = parse_amount(f"+{text}")
    except ValueError:
        with pytest.raises(ValueError, match="digits"):
            parse_amount(text)
        return
    plain = parse_amount(text)
    assert (str(plain.value), plain.currency, plain.warning) == (str(signed.value), signed.currency, signed.warning)
