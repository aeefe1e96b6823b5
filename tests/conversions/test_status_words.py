"""Tests of the status words of affiliate networks."""

import pytest

from shortener.conversions.status_words import WORDS, category_of, classify, derive_disposition


def test_no_status_word_has_two_meanings() -> None:
    words = [word for group in WORDS.values() for word in group]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("approved paid sale confirmed", "positive"),
        ("rejected declined reversed refund chargeback cancelled void trash fraud", "negative"),
        ("pending hold lead registered", "pending"),
    ],
)
def test_common_status_words_are_recognised_in_any_case_and_with_separators(words: str, meaning: str) -> None:
    for word in words.split():
        assert classify(word) == classify(word.upper()) == classify(f" {word[:2]}-{word[2:]} ") == meaning


def test_a_pending_or_unknown_status_word_has_no_disposition() -> None:
    assert [derive_disposition(word) for word in ("paid", "void", "lead", "blue", None)] == [
        "positive",
        "negative",
        None,
        None,
        None,
    ]


def test_the_category_of_a_conversion_is_its_disposition_and_without_one_the_meaning_of_its_status_word() -> None:
    assert category_of("lead", "negative") == "negative"
    assert category_of("rejected", "positive") == "positive"
    assert [category_of(word, None) for word in ("on hold", "blue", None)] == ["pending", "other", "other"]
