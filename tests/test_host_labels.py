"""Tests of the labels of hosts: punycode, symbols, and labels in right-to-left scripts."""

from __future__ import annotations

import idna
import pytest

from shortener.host_labels import LABEL, check_directions, decode_label, encode_label
from tests.one_test import in_one_test


@in_one_test
@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("shop", "shop"),
        ("my_shop", "my_shop"),
        ("r3---sn-x", "r3---sn-x"),
        ("bücher", "xn--bcher-kva"),
        ("faß", "xn--fa-hia"),
        ("пример", "xn--e1afmkfd"),
        ("βόλος", "xn--nxasmm1c"),
        ("💩", "xn--ls8h"),
        ("i❤", "xn--i-7iq"),
        ("✪df", "xn--df-oiy"),
        ("👍🏽", "xn--on8h5e"),
        ("1\u20e3", "xn--1-2sn"),
    ],
)
def test_a_label_becomes_punycode_and_its_punycode_stays_unchanged(text: str, encoded: str) -> None:
    assert encode_label(text) == encoded
    assert encode_label(encoded) == encoded
    assert decode_label(encoded) == text
    assert LABEL.fullmatch(encoded)


@in_one_test
@pytest.mark.parametrize(
    "label",
    [
        "xn--",
        "xn--a",
        "xn--ls8h-",
        "xn--LS8H",  # the punycode of this text must be in lower case
        "💩-",
        "💩!",
        "💩A",
        "\u20e3",
        "א💩",
        "👨\u200d👩\u200d👧",
        "i❤\ufe0f",
        "℀",  # UTS 46 converts the symbol to a/c
        "xn--z1g",  # the punycode of the symbol above
    ],
)
def test_a_label_that_browsers_reject_is_an_error(label: str) -> None:
    with pytest.raises(idna.IDNAError):
        encode_label(label)


@pytest.mark.parametrize("label", ["", "shop.example", "Shop", "a b", "shop;a", "a" * 64, "ä"])
def test_the_expression_for_labels_matches_lower_case_ascii_of_at_most_63_characters(label: str) -> None:
    assert not LABEL.fullmatch(label)


@pytest.mark.parametrize(
    "labels", [["0à", "example"], ["shop", "xn--4dbrk0ce"], ["0a", "xn--4dbrk0ce"], ["xn--ls8h", "xn--4dbrk0ce"]]
)
def test_labels_without_the_wrong_direction_are_accepted(labels: list[str]) -> None:
    check_directions(labels)


def test_a_host_with_hebrew_letters_must_not_have_an_international_label_that_begins_with_a_digit() -> None:
    with pytest.raises(idna.IDNAError):
        check_directions([encode_label("0à"), encode_label("א")])
