"""Tests of numbers with their nouns in texts for people."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shortener.plurals import counted

PACKAGE = Path(__file__).parents[1] / "shortener"
NOUNS = (
    "applications|attempts|bytes|characters|clicks|codes|connections|conversions|days|deliveries|domains|entries|errors|events|files"
    "|gateways|hits|hours|keys|links|messages|minutes|operators|processes|recipients|requests|rows|seconds|sessions|steps|trackers"
)
_PLURAL = re.compile(rf" (?:(?!to )[a-z]+ )?(?:{NOUNS})\b")
#: Words after a number that are allowed in the plural, each with the reason: the number is never 1, or it does not count these
#: things.
EXCEPTIONS = {
    " clicks list": "the name of the command precedes it",
    " attempts failed": "a single failure has another text",
    " bytes, so the rest is missing": "the size of a database",
    " messages ...": "the demo has at least 10",
    " requests instead of 4": "the number is for developers",
    " links of the message were opened within a second": "the rule needs several links",
    " recipients within a minute": "the rule needs several recipients",
    " refuses connections": "the number of a port",
    " accepts requests from other machines": "a host",
}


@pytest.mark.parametrize(
    ("number", "expected"), [(0, "0 messages"), (1, "1 message"), (2, "2 messages"), (12_345, "12,345 messages")]
)
def test_a_number_of_one_has_a_noun_in_the_singular(number: int, expected: str) -> None:
    assert counted(number, "message") == expected


def test_words_with_another_plural_are_given_in_both_forms() -> None:
    assert [counted(number, "delivery waits", "deliveries wait") for number in (1, 3)] == ["1 delivery waits", "3 deliveries wait"]


def _texts_with_numbers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """For each value in an f-string, yield the words after it and the number of its line. Leave out values that are constants or
    limits of the code."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, following in zip(node.values, node.values[1:], strict=False):
            if isinstance(value, ast.FormattedValue) and isinstance(following, ast.Constant):
                names = re.findall(r"[A-Za-z_]\w+", ast.unparse(value.value))
                if not any(name.isupper() or name in ("limit", "max_bytes", "counted") for name in names):
                    yield str(following.value), value.lineno


def test_no_text_has_a_plural_after_a_number_that_can_be_1() -> None:
    found = [
        f"{file.relative_to(PACKAGE)}:{line}: ...{text[:60]}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for text, line in _texts_with_numbers(ast.parse(file.read_text()))
        if _PLURAL.match(text) and not any(part in text for part in EXCEPTIONS)
    ]
    assert found == [], "use counted(number, 'message') of shortener/plurals.py"
