import os
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shortener.ids import (
    ALPHABET,
    CONVERSION_IDS,
    DELIVERY_IDS,
    LINK_UPDATE_IDS,
    REFUSED_REPORT_IDS,
    ClickIds,
    IdGenerator,
    PublicIds,
    decode,
    encode,
    new_message_id,
    parse_counted_id,
    randbits,
)
from shortener.storage.types import to_ms
from tests.one_test import in_one_test

NOON = to_ms(datetime(2026, 11, 20, 12, tzinfo=UTC))


@in_one_test
@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("0017", 17), ("2147483647", 2**31 - 1), ("2147483648", None), ("9" * 5000, None)]
    + [(text, None) for text in ("", "-1", "+1", " 1", "1.0", "1_0", "٣", "²", "x")],
)
def test_a_text_is_a_counted_id_only_if_it_has_decimal_digits_and_the_database_accepts_the_number(
    text: str, number: int | None
) -> None:
    assert parse_counted_id(text) == number


@given(st.integers(0, 2**63 - 1))
def test_a_row_id_is_encoded_in_eleven_characters_and_decoded(number: int) -> None:
    assert len(encode(number)) == 11
    assert decode(encode(number)) == number


@given(st.text(ALPHABET, min_size=11, max_size=11) | st.text(max_size=30))
@example(encode(2**63 - 1))
@example(encode(2**63))
@example("z" * 11)
def test_decoding_any_text_as_a_row_id_returns_a_number_of_63_bits_or_none(text: str) -> None:
    number = decode(text)
    assert number is None or (number < 2**63 and encode(number) == text)


@pytest.mark.parametrize(
    ("ids", "prefix"),
    [(CONVERSION_IDS, "cnv_"), (DELIVERY_IDS, "dlv_"), (LINK_UPDATE_IDS, "upd_"), (REFUSED_REPORT_IDS, "rfs_")],
)
def test_a_public_id_has_the_prefix_of_its_kind_and_is_also_accepted_without_the_prefix(ids: PublicIds, prefix: str) -> None:
    assert ids.encode(7) == f"{prefix}00000000007"
    assert ids.decode(ids.encode(7)) == ids.decode("00000000007") == 7
    assert ids.decode(f"xyz_{encode(7)}") is None
    assert ids.decode(prefix) is None


def test_generated_ids_increase_while_the_clock_stops_or_steps_back() -> None:
    times = iter([NOON] * 5000 + [NOON - 3_600_000] * 5000)
    ids = IdGenerator(7, lambda: next(times))
    created = [ids() for _ in range(10_000)]
    assert created == sorted(set(created))
    assert all(0 < number < 2**63 for number in created)


def test_two_nodes_never_generate_the_same_id() -> None:
    one, two = IdGenerator(1, lambda: NOON), IdGenerator(2, lambda: NOON)
    assert not {one() for _ in range(9000)} & {two() for _ in range(9000)}


@given(st.integers(0, 2**63 - 1), st.integers(0, 18), st.sampled_from("0Az"))
def test_a_click_id_is_rejected_if_a_character_was_changed_or_another_key_encoded_it(hit: int, place: int, other: str) -> None:
    click_ids = ClickIds(b"k" * 32)
    click_id = click_ids.encode(hit)
    assert len(click_id) == 19
    assert click_ids.decode(click_id) == hit
    changed = click_id[:place] + other + click_id[place + 1 :]
    assert click_ids.decode(changed) == (hit if changed == click_id else None)
    assert ClickIds(b"x" * 32).decode(click_id) is None


@given(st.text(max_size=40))
def test_a_random_text_is_not_accepted_as_a_click_id(text: str) -> None:
    assert ClickIds(b"k" * 32).decode(text) is None


def test_message_ids_have_22_letters_and_digits_and_do_not_repeat() -> None:
    created = {new_message_id() for _ in range(1000)}
    assert len(created) == 1000
    assert {len(one) for one in created} == {22}
    assert all(one.isalnum() for one in created)


def test_generated_random_numbers_use_every_bit_and_do_not_repeat() -> None:
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
def test_a_forked_process_generates_other_random_numbers_than_its_parent() -> None:
    randbits(64)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, randbits(64).to_bytes(8))
        os._exit(0)
    os.waitpid(child, 0)
    of_child = int.from_bytes(os.read(read, 8))
    os.close(read)
    os.close(write)
    assert of_child not in [randbits(64) for _ in range(1000)]


def test_ids_remain_unique_and_increasing_when_the_node_number_changes() -> None:
    ids = IdGenerator(900, lambda: 1_800_000_000_000)
    before = [ids() for _ in range(3)]
    ids.use_node(1)
    after = [ids() for _ in range(3)]
    assert sorted({*before, *after}) == before + after
    assert after[0] >> 12 & 1023 == 1
