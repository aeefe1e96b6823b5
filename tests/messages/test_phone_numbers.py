import phonenumbers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shortener.messages.phone_numbers import PhoneNumber, PhoneNumberError, check_sender, parse_number


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
        ("+9991234567", None),  # no such code
        ("+14085555", None),
    ],
)
def test_a_valid_number_is_returned_unchanged_with_its_country(to: str, country: str | None) -> None:
    assert parse_number(to) == PhoneNumber(to, country)


@pytest.mark.parametrize(
    "to",
    [
        "",
        "+",
        "14155550100",
        "0014155550100",
        "+04155550100",
        "+1 415 555 0100",
        "+1-415-555-0100",
        "+1408555XXXX",
        "+1415555010٠",
        "+１４１５５５５０１００",
        "+123456",
        "+1234567890123456",
        "tel:+14155550100",
        "+14155550100;ext=1",
        "+14155550100\n",
        " +14155550100",
        "+" + "1" * 10_000,
    ],
)
def test_a_text_that_is_not_an_e164_number_is_rejected_with_a_short_reason(to: str) -> None:
    with pytest.raises(PhoneNumberError, match=r"is not an E\.164 number") as caught:
        parse_number(to)
    assert len(caught.value.reason) < 150


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
    """Real numbers of a calling code that several countries share, with random last digits."""
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
@settings(max_examples=1000)
@example("+448001111")
@example("+448001112")
@example("+440146051234")
@example("+440146059234")
@example("+61851181234")
@example("+61851182234")
def test_the_country_equals_the_one_that_phonenumbers_returns(number: str) -> None:
    # Twice: the first call fills the cache, the second reads it.
    try:
        assert parse_number(number).country == phonenumbers_country(number)
    except PhoneNumberError:
        return
    assert parse_number(number).country == phonenumbers_country(number)


@pytest.mark.parametrize(
    "sender",
    [
        "123",
        "72345",
        "18775550100",
        "+18775550100",
        "ABC",
        "InfoSMS",
        "Gladiator1",
        "a2345678901",
        "channel:Bxn9SHBYhl89KnXXXXXXXX",
        "sender_id:EjihJOXWJE24O",
    ],
)
def test_usual_sender_ids_are_accepted(sender: str) -> None:
    assert check_sender(sender) is None


@pytest.mark.parametrize(
    "sender",
    [
        "",
        "12",
        "+12",
        "1234567890123456",
        "AB",
        "1Shop",
        "My Shop",
        "Shöp",
        "Shop\n",
        "ABCDEFGHIJKL",
        "٣٣٣",
        "channel:",
        "channel: x",
        "x:1",
    ],
)
def test_unusual_sender_ids_are_reported(sender: str) -> None:
    assert check_sender(sender) == "is neither a number of 3 to 15 digits nor 3 to 11 letters and digits that start with a letter"
