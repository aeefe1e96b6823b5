"""Tests of dead letters: the text that is stored for a hit, for a spool entry that cannot be read, and for an error."""

from __future__ import annotations

import json

import pytest

from shortener.clicks.dead_letters import MAX_TEXT_CHARACTERS, DeadLetter, count, from_entry, from_hit, reason_of, store
from shortener.container import Service
from shortener.storage import schema
from tests.clicks.helpers import fetch_rows, make_hit


def test_a_dead_letter_contains_the_client_address_only_if_the_application_may_store_it() -> None:
    from shortener.clicks.resolver import Hit
    from shortener.model import Verdict

    hit = Hit(2**70, "code", None, 1, Verdict.HUMAN, "r", "192.0.2.1", "Phone", origin=7)
    assert json.loads(from_hit(hit, "x").hit)["address"] == "192.0.2.1"
    without = json.loads(from_hit(hit, "x", has_address=False).hit)
    assert (without["address"], without["id"], without["user_agent"]) == ("", 2**70, "Phone")
    assert "origin" not in without


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"code": "abc"}', ('{"code": "abc"}', "abc")),
        (b'{"code": 7}', ('{"code": 7}', None)),
        (b"[1]", ("[1]", None)),
        (b'{"code": "\\ud800"}', ('{"code": "\\ud800"}', None)),
        (b"[" * 100_000, ("[" * 100_000, None)),
        (b"\xff\x00", ("\\xff\\x00", None)),
    ],
)
def test_a_spool_entry_that_cannot_be_parsed_is_stored_as_the_text_of_a_dead_letter(
    content: bytes, expected: tuple[str, str | None]
) -> None:
    letter = from_entry(content, "r")
    assert (letter.hit, letter.code) == expected


def test_the_reason_of_a_dead_letter_is_the_first_line_of_the_error() -> None:
    assert reason_of(ValueError("rejected\nDETAIL: row contains (192.0.2.1)")) == "ValueError: rejected"


async def test_dead_letters_with_text_of_any_length_and_content_are_stored(service: Service) -> None:
    letters = [DeadLetter("x" * MAX_TEXT_CHARACTERS * 2, "a\x00b", "y\x00"), from_hit(make_hit(service, "c\x00"), "r")]
    await service.database.write(store, letters, service.clock())
    assert await service.database.read(count) == 2
    stored = await fetch_rows(service, schema.hits_dead_letter)
    assert [len(row.hit) == MAX_TEXT_CHARACTERS for row in stored] == [True, False]
