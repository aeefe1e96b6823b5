"""Tests of the opt-out list: which replies are opt-outs, and which recipients are on the list."""

from __future__ import annotations

import pytest

from shortener.messages.opt_outs import add_opt_out, find_opt_outs, list_opt_outs, parse_reply, remove_opt_out
from shortener.storage.database import Database
from tests.conftest import NOON

PHONE = "+14085550100"


@pytest.mark.parametrize(
    "text", ["STOP", " stop ", "Stop.", "STOP!!", "stop-all", "Unsubscribe", "opt_out", "Arrêt", "СТОП", "停止"]
)
def test_a_reply_that_contains_only_a_stop_word_is_recognised_as_an_opt_out(text: str) -> None:
    assert parse_reply(text) == "stop"


@pytest.mark.parametrize("text", ["start", "UNSTOP", "Subscribe"])
def test_a_reply_that_contains_only_a_start_word_is_recognised_as_an_opt_in(text: str) -> None:
    assert parse_reply(text) == "start"


@pytest.mark.parametrize("text", ["", "please stop by tomorrow", "don't stop", "stops", "yes", "🙂", "stop " * 50, "\x00"])
def test_a_reply_with_any_other_text_is_neither_an_opt_out_nor_an_opt_in(text: str) -> None:
    assert parse_reply(text) is None


async def test_a_phone_number_stays_on_the_opt_out_list_of_one_application_until_it_is_removed(database: Database) -> None:
    assert await database.write(add_opt_out, 1, PHONE, NOON, "STOP")
    assert not await database.write(add_opt_out, 1, PHONE, NOON, "STOP")
    assert await database.read(find_opt_outs, [(1, PHONE), (2, PHONE), (1, "+447911123456")]) == {(1, PHONE)}
    [row] = await database.read(list_opt_outs, 1)
    assert (row["phone"], row["source"], row["at"]) == (PHONE, "STOP", NOON)
    assert await database.read(list_opt_outs, 1, PHONE) == []
    assert await database.write(remove_opt_out, 1, PHONE)
    assert not await database.write(remove_opt_out, 1, PHONE)
    assert await database.read(find_opt_outs, [(1, PHONE)]) == set()
