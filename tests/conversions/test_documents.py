"""Tests that the tables in docs/reference/conversions.md equal the tables in the code."""

from pathlib import Path

from shortener.conversions.amounts import RULES
from shortener.conversions.macros import NOTATIONS
from shortener.conversions.status_words import WORDS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "conversions.md").read_text()


def test_the_conversions_page_lists_every_rule_for_amounts() -> None:
    for rule in RULES:
        stored = "stored as text" if rule.amount is None else f"`{rule.amount}`"
        assert f"| `{rule.text}` | {stored} | {rule.meaning} |" in PAGE


def test_the_conversions_page_lists_every_status_word_and_placeholder_notation() -> None:
    for disposition, words in WORDS.items():
        assert f"| {disposition} | {' '.join(f'`{word}`' for word in words)} |" in PAGE
    listed = PAGE[PAGE.index("### Placeholders") : PAGE.index("### Amounts")]
    assert [notation for notation in NOTATIONS if f" `{notation}`" not in listed] == []
