import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.messages.segments import Segments, characters_left, count_segments
from tests.one_test import in_one_test

BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
EXTENSION = "\f^{}\\[~]|€"


def count_slowly(text: str) -> Segments:
    """Count the segments of a text with a simple loop over its characters, according to TS 23.040. Return the expected result."""
    gsm = all(character in BASIC + EXTENSION for character in text)
    sizes = [(2 if c in EXTENSION else 1) if gsm else (2 if ord(c) > 0xFFFF else 1) for c in text]
    units = sum(sizes)
    if units <= (160 if gsm else 70):
        return Segments("GSM-7" if gsm else "UCS-2", 1, units)
    segments, used = 1, 0
    for size in sizes:
        if used + size > (153 if gsm else 67):
            segments, used = segments + 1, 0
        used += size
    return Segments("GSM-7" if gsm else "UCS-2", segments, units)


def test_the_gsm7_alphabet_contains_only_the_basic_and_extension_characters_of_the_standard() -> None:
    assert len(BASIC) == 127  # GSM-7 has 128 septets, of which one is the escape
    assert count_segments(BASIC) == Segments("GSM-7", 1, 127)
    assert count_segments(EXTENSION) == Segments("GSM-7", 1, 20)
    assert sum(count_segments(chr(code)).encoding == "GSM-7" for code in range(0x10000)) == 137


@in_one_test
@pytest.mark.parametrize("character", ["`", "ç", "ê", "\t", "\0", "\x1b", "’", "“", "–", "…", "\u00a0", "Α", "👍", "\ud800"])
def test_one_character_outside_gsm7_makes_the_whole_text_ucs2(character: str) -> None:
    assert count_segments("hello " + character).encoding == "UCS-2"


@in_one_test
@pytest.mark.parametrize(
    ("text", "encoding", "segments", "units"),
    [
        ("", "GSM-7", 1, 0),
        ("a" * 160, "GSM-7", 1, 160),
        ("a" * 161, "GSM-7", 2, 161),
        ("a" * 306, "GSM-7", 2, 306),
        ("a" * 307, "GSM-7", 3, 307),
        ("a" * 158 + "€", "GSM-7", 1, 160),
        ("a" * 159 + "€", "GSM-7", 2, 161),
        ("a" * 152 + "€" + "a" * 152, "GSM-7", 3, 306),  # the escape pair of € moves to the second segment, which overflows
        ("a" * 151 + "€" + "a" * 153, "GSM-7", 2, 306),
        ("é" * 70, "GSM-7", 1, 70),
        ("ê" * 70, "UCS-2", 1, 70),
        ("ê" * 71, "UCS-2", 2, 71),
        ("ê" * 134, "UCS-2", 2, 134),
        ("ê" * 135, "UCS-2", 3, 135),
        ("👍" * 35, "UCS-2", 1, 70),
        ("👍" * 36, "UCS-2", 2, 72),
        ("👍" * 66, "UCS-2", 2, 132),  # 33 surrogate pairs per segment; one of 67 units is unused
        ("👍" * 67, "UCS-2", 3, 134),
    ],
)
def test_segments_of_texts_at_the_boundary_of_a_segment_are_counted_correctly(
    text: str, encoding: str, segments: int, units: int
) -> None:
    counted = count_segments(text)
    assert (counted.encoding, counted.segments, counted.units) == (encoding, segments, units)


@given(
    st.one_of(
        st.text(st.sampled_from("aé€^"), min_size=100, max_size=800),
        st.text(st.sampled_from("aê👍"), min_size=50, max_size=400),
        st.text(st.characters(codec="utf-8"), max_size=400),
    )
)
def test_the_segment_count_equals_the_result_of_a_simple_loop_over_the_characters(text: str) -> None:
    assert count_segments(text) == count_slowly(text)


def test_the_field_characters_left_is_the_number_of_characters_that_fit_into_the_last_segment() -> None:
    assert characters_left("") == 160
    assert characters_left("x" * 159) == 1
    assert characters_left("x" * 161) == 2 * 153 - 161
    assert characters_left("é€") == 160 - 3
    assert characters_left("日" * 71) == 2 * 67 - 71
