import os
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.ids import ClickIds, IdGenerator, decode, encode, new_message_id, randbits
from shortener.storage.types import to_ms

NOON = to_ms(datetime(2026, 11, 20, 12, tzinfo=UTC))


@given(st.integers(0, 2**63 - 1))
def test_a_number_is_spelled_in_eleven_characters_and_read_back(number: int) -> None:
    assert len(encode(number)) == 11
    assert decode(encode(number)) == number


@given(st.text(max_size=30))
def test_decoding_never_fails_on_what_strangers_send(text: str) -> None:
    number = decode(text)
    assert number is None or encode(number) == text


def test_ids_grow_even_when_the_clock_stands_still_or_steps_back() -> None:
    times = iter([NOON] * 5000 + [NOON - 3_600_000] * 5000)
    ids = IdGenerator(7, lambda: next(times))
    made = [ids() for _ in range(10_000)]
    assert made == sorted(set(made))
    assert all(0 < number < 2**63 for number in made)


def test_two_nodes_never_make_the_same_id() -> None:
    one, two = IdGenerator(1, lambda: NOON), IdGenerator(2, lambda: NOON)
    assert not {one() for _ in range(9000)} & {two() for _ in range(9000)}


@given(st.integers(0, 2**63 - 1), st.integers(0, 18), st.sampled_from("0Az"))
def test_a_click_id_is_ours_only_if_every_character_is(hit: int, place: int, other: str) -> None:
    click_ids = ClickIds(b"k" * 32)
    click_id = click_ids.encode(hit)
    assert len(click_id) == 19
    assert click_ids.decode(click_id) == hit
    changed = click_id[:place] + other + click_id[place + 1 :]
    assert click_ids.decode(changed) == (hit if changed == click_id else None)
    assert ClickIds(b"x" * 32).decode(click_id) is None


@given(st.text(max_size=40))
def test_any_text_is_a_click_id_of_nobody(text: str) -> None:
    assert ClickIds(b"k" * 32).decode(text) is None


def test_message_ids_look_like_those_of_syniverse_and_do_not_repeat() -> None:
    made = {new_message_id() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(one) for one in made} == {22}
    assert all(one.isalnum() for one in made)


def test_random_numbers_have_their_bits_and_none_comes_twice() -> None:
    for bits in (1, 7, 8, 48, 131):
        numbers = [randbits(bits) for _ in range(2000)]
        assert max(numbers) < 1 << bits
        seen_one = seen_zero = 0
        for number in numbers:
            seen_one |= number
            seen_zero |= ~number
        assert seen_one == (1 << bits) - 1, "every bit is used"
        assert seen_zero & seen_one == seen_one
    assert len({randbits(131) for _ in range(10_000)}) == 10_000


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_child_process_does_not_draw_its_parents_numbers() -> None:
    randbits(64)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, randbits(64).to_bytes(8))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = int.from_bytes(os.read(read, 8))
    os.close(read)
    os.close(write)
    assert theirs not in [randbits(64) for _ in range(1000)]
