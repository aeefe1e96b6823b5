"""Tests of the encoding of texts as short messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.gateways.smpp.encoding import decode_received, encode_parts
from shortener.messages.segments import count_segments

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=400) | st.text("ab€[]~é@\n", max_size=800)


def joined(text: str) -> str:
    """Return the text that a phone shows after it has joined the parts of a long SMS."""
    encoded = encode_parts(text, "reference")
    bodies = [part[6:] if encoded.has_headers else part for part in encoded.parts]
    return decode_received(b"".join(bodies), encoded.data_coding, False).text


@given(TEXTS)
def test_a_long_sms_has_as_many_parts_as_priced_segments_and_joining_the_parts_produces_its_text(text: str) -> None:
    encoded = encode_parts(text, "reference")
    assert joined(text) == text
    assert len(encoded.parts) == count_segments(text).segments
    assert all(len(part) <= (160 if encoded.data_coding == 0 else 140) for part in encoded.parts)


def test_a_text_of_the_default_alphabet_has_data_coding_0_and_escaped_extension_characters() -> None:
    assert encode_parts("@£€^{}\\[~]|Ä", "r") == (
        0,
        [bytes.fromhex("00 01 1b65 1b14 1b28 1b29 1b2f 1b3c 1b3d 1b3e 1b40 5b")],
        False,
    )


def test_a_text_outside_the_default_alphabet_is_encoded_as_ucs2_with_surrogate_pairs() -> None:
    assert encode_parts("Привет 😀", "r") == (8, ["Привет 😀".encode("utf-16-be")], False)


def test_the_parts_of_a_long_sms_have_headers_with_the_same_reference_number_and_a_part_number() -> None:
    encoded = encode_parts("x" * 161, "r1")
    first, second = encoded.parts
    assert (len(first), len(second)) == (6 + 153, 6 + 8)
    assert first[:3] == second[:3] == b"\x05\x00\x03"
    assert first[3] == second[3]
    assert (first[4:6], second[4:6]) == (b"\x02\x01", b"\x02\x02")
    assert encode_parts("x" * 161, "r1") == encoded


@pytest.mark.parametrize("text", ["x" * 152 + "€" + "y" * 10, "я" * 66 + "😀" + "я" * 10])
def test_an_extension_character_and_a_surrogate_pair_are_not_divided_between_two_sms_parts(text: str) -> None:
    encoded = encode_parts(text, "r")
    parts = [decode_received(part, encoded.data_coding, True).text for part in encoded.parts]
    assert "".join(parts) == text


def test_a_text_with_more_than_255_sms_parts_is_rejected() -> None:
    with pytest.raises(ValueError, match="256 SMS"):
        encode_parts("x" * 153 * 256, "r")


@pytest.mark.parametrize(
    ("data", "coding", "has_header", "text", "part"),
    [
        (b"STOP", 0, False, "STOP", 1),
        ("СТОП".encode("utf-16-be"), 8, False, "СТОП", 1),
        ("ARRÊT".encode("latin-1"), 3, False, "ARRÊT", 1),
        (b"\x05\x00\x03\x07\x02\x02rest", 0, True, "rest", 2),
        (b"\x06\x08\x04\x00\x07\x02\x02rest", 0, True, "rest", 2),
        (b"\x1b\x65\x1b", 0, False, "€�", 1),
        (b"\xff", 0, False, "�", 1),
        (b"", 0, True, "", 1),
        (b"\xff\x00", 0, True, "", 1),
        (b"\xd8", 8, False, "�", 1),
    ],
)
def test_received_smpp_messages_with_any_bytes_are_decoded(
    data: bytes, coding: int, has_header: bool, text: str, part: int
) -> None:
    assert decode_received(data, coding, has_header) == (text, part)
