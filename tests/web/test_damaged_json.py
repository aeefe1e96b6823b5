"""Tests of JSON bodies with invalid bytes or invalid characters."""

import pytest

from shortener.web.damaged_json import RepairedText, load_damaged_json, repair


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'{"a": ["verf\xfcgbar"]}', {"a": ["verfügbar"]}),
        (b'"\xc3\xbc and \xfc"', "ü and ü"),
        (b'"\\ud83d"', "\ufffd"),
        (b'"\x81"', "\ufffd"),  # Windows-1252 has no character for this byte
        (b'{"\xfc": 1}', {"ü": 1}),
    ],
)
def test_invalid_bytes_and_surrogates_in_a_json_text_are_replaced(content: bytes, value: object) -> None:
    assert repair(load_damaged_json(content)) == value


def test_only_a_json_text_with_replaced_characters_is_marked_as_repaired() -> None:
    changed, *others = repair(load_damaged_json(b'["\xfc", "\xc3\xbc", "\\ud83d\\ude00", "a"]'))
    assert isinstance(changed, RepairedText)
    assert others == ["ü", "\U0001f600", "a"]
    assert not any(isinstance(text, RepairedText) for text in others)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_the_encoding_of_a_json_body_is_detected(encoding: str) -> None:
    assert load_damaged_json('{"a": "ü"}'.encode(encoding)) == {"a": "ü"}
