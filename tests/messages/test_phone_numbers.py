import phonenumbers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shortener.messages.phone_numbers import (
    PhoneNumber,
    PhoneNumberError,
    parse_number,
    parse_searched_number,
)
from tests.one_test import in_one_test


@pytest.mark.parametrize(
    ("to", "country"),
    [
        ("+14155550100", "US"),
        ("+14165550100", "CA"),
        ("+18765550100", "JM"),
        ("+447400123456", "GB"),
        ("+447624012345", "IM"),
        ("+491701234567", "DE"),
        ("+79161234567", "RU"),
        ("+77011234567", "KZ"),
        ("+390669812345", "VA"),
        ("+61891620123", "CC"),
        ("+8613812345678", "CN"),
        ("+870773111632", None),  # a satellite phone
    ],
)
def test_a_valid_phone_number_is_returned_unchanged_with_its_country(to: str, country: str | None) -> None:
    assert parse_number(to) == PhoneNumber(to, country)


@pytest.mark.parametrize(
    "to",
    [
        "0014155550100",
        "+1 415 555 0100",
        "+1-415-555-0100",
        "+1\u2011415\u2013555\u22120100",
        " +1 (415) 555-0100\n",
        "(+1)\u00a0415\u3000555\u20090100",
        "\u202a+14155550100\u202c",
        "+1415\u200b5550100\ufeff",
        "00 1 [415] 5550100",
    ],
)
def test_spaces_hyphens_brackets_invisible_characters_and_a_leading_00_are_removed_from_a_phone_number(to: str) -> None:
    assert parse_number(to) == PhoneNumber("+14155550100", "US")


@pytest.mark.parametrize(
    ("to", "e164"),
    [
        ("+44 (0)20 7946 0018", "+442079460018"),
        ("0049 (0) 170 1234567", "+491701234567"),
        ("+39 (0)6 69812345", "+390669812345"),
    ],
)
def test_a_trunk_prefix_in_brackets_is_removed_from_a_phone_number_except_in_italy(to: str, e164: str) -> None:
    assert parse_number(to).e164 == e164


@pytest.mark.parametrize("to", ["14155550100", "1 415 555 0100", "41793026731", "49 170 1234567"])
def test_a_phone_number_without_a_plus_is_accepted_with_a_warning_if_it_is_valid(to: str) -> None:
    number = parse_number(to)
    assert number.e164 == "+" + to.replace(" ", "")
    assert number.warnings == (f"to {to!r} has no +; it was read as {number.e164}",)


@pytest.mark.parametrize("to", ["+1408555010", "+140855501000", "+14085555"])
def test_a_phone_number_whose_length_is_impossible_in_its_country_causes_a_warning(to: str) -> None:
    assert parse_number(to).warnings == (f"to {to} has a length that no number of its country has; carriers may reject it",)


@pytest.mark.parametrize(
    ("to", "is_warned"), [("+9991234567", True), ("+21012345678", True), ("+80012345678", False), ("+870773111632", False)]
)
def test_a_phone_number_with_an_unknown_calling_code_causes_a_warning(to: str, is_warned: bool) -> None:
    expected = f"to {to} has a calling code that no country has; carriers may reject it"
    assert parse_number(to).warnings == ((expected,) if is_warned else ())


@in_one_test
@pytest.mark.parametrize(
    "to",
    [
        "",
        "+",
        "4155550100",  # +41 is Switzerland, which has no such number
        "0415555010",
        "+0014155550100",
        "+04155550100",
        "+1 415 555 0100 ext 5",
        "+1408555XXXX",
        "+1415555010٠",
        "+１４１５５５５０１００",
        "+123456",
        "+1234567890123456",
        "tel:+14155550100",
        "+14155550100;ext=1",
        "+" + "1" * 10_000,
    ],
)
def test_a_text_that_is_not_a_phone_number_is_rejected_with_a_reason(to: str) -> None:
    with pytest.raises(PhoneNumberError, match=r"is not an E\.164 number") as caught:
        parse_number(to)
    assert len(caught.value.reason) < 150


@pytest.mark.parametrize(
    "text",
    [
        "+19995550100",
        "19995550100",
        " 19995550100",
        "0019995550100",
        " 1 (999) 555-0100",
        "1.999.555/0100",
        "\u202a+19995550100\u202c",
    ],
)
def test_a_search_accepts_a_phone_number_without_a_plus_or_with_a_space_instead_of_the_plus(text: str) -> None:
    assert parse_searched_number(text) == "+19995550100"


@pytest.mark.parametrize("text", ["", "+", "123456", "0415555010", "+1408555XXXX", "1" * 16])
def test_a_search_rejects_a_text_that_is_not_a_phone_number(text: str) -> None:
    with pytest.raises(PhoneNumberError):
        parse_searched_number(text)


def phonenumbers_country(number: str) -> str | None:
    try:
        region: str | None = phonenumbers.region_code_for_number(phonenumbers.parse(number))
    except phonenumbers.NumberParseException:
        return None
    return None if region == "001" else region


CALLING_CODES = sorted(phonenumbers.COUNTRY_CODE_TO_REGION_CODE)
SHARED_CODES = [code for code in CALLING_CODES if len(phonenumbers.COUNTRY_CODE_TO_REGION_CODE[code]) > 1]
EXAMPLES = [
    phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    for code in SHARED_CODES
    for region in phonenumbers.COUNTRY_CODE_TO_REGION_CODE[code]
    for kind in phonenumbers.PhoneNumberType.values()
    if (number := phonenumbers.example_number_for_type(region, kind)) is not None
]


@st.composite
def variations(draw: st.DrawFn) -> str:
    """Return variations of real numbers with random last digits, for a calling code that several countries share."""
    number = draw(st.sampled_from(EXAMPLES))
    prefix = draw(st.integers(3, len(number)))
    suffix = len(number) - prefix
    return number[:prefix] + draw(st.text("0123456789", min_size=suffix, max_size=suffix))


@given(
    st.one_of(
        variations(),
        st.builds("+{}{}".format, st.sampled_from(SHARED_CODES), st.text("0123456789", min_size=10, max_size=10)),
        st.builds("+{}{}".format, st.sampled_from(CALLING_CODES), st.text("0123456789", min_size=6, max_size=11)),
        st.from_regex(r"\+[1-9][0-9]{6,14}", fullmatch=True),
    )
)
@settings(max_examples=10 * settings().max_examples)
@example("+448001111")
@example("+448001112")
@example("+440146051234")
@example("+440146059234")
@example("+61851181234")
@example("+61851182234")
def test_the_country_of_a_phone_number_equals_the_result_of_the_phonenumbers_library(number: str) -> None:
    # The number is parsed twice: the first call fills the cache, and the second call reads it.
    try:
        assert parse_number(number).country == phonenumbers_country(number)
    except PhoneNumberError:
        return
    assert parse_number(number).country == phonenumbers_country(number)
