import random

import pytest
from hashids import Hashids
from hypothesis import given
from hypothesis import strategies as st

from shortener.messages.codes import MAX_BITS, MIN_BITS, Codes, code_length

SALT = "q8Zp3vKs0LmXw7Rt"


def test_a_link_code_of_48_bits_has_ten_characters_of_base_62() -> None:
    codes = Codes(SALT)
    minted = {codes.mint() for _ in range(1000)}
    assert len(minted) == 1000
    assert all(len(code) == codes.length == 10 and code.isascii() and code.isalnum() for code in minted)


@given(st.integers(MIN_BITS, MAX_BITS), st.text(min_size=1, max_size=40), st.data())
def test_every_link_code_equals_the_result_of_the_hashids_library_and_all_link_codes_have_the_same_length(
    bits: int, salt: str, data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, (1 << bits) - 1) | st.sampled_from([0, 1, 43, 44, (1 << bits) - 1]))
    salt += SALT
    codes = Codes(salt, bits, randbits=lambda requested: number if requested == bits else -1)
    code = codes.mint()
    hashids = Hashids(salt, code_length(bits))
    assert code == hashids.encode(number)
    assert hashids.decode(code) == (number,)
    assert len(code) == code_length(bits)


def test_the_same_random_numbers_produce_the_same_link_codes() -> None:
    first, second = (Codes(SALT, randbits=random.Random(7).getrandbits) for _ in range(2))
    assert [first.mint() for _ in range(5)] == [second.mint() for _ in range(5)]


def test_the_same_number_is_encoded_as_another_link_code_with_another_salt() -> None:
    assert Codes(SALT, randbits=lambda _: 12345).mint() != Codes(SALT[::-1], randbits=lambda _: 12345).mint()


@pytest.mark.parametrize("salt", ["", "short", "this is my salt", SALT[:15], "a" * 40, "changemechangeme", "0123" * 10])
def test_a_salt_that_is_empty_short_or_a_placeholder_is_rejected(salt: str) -> None:
    with pytest.raises(ValueError, match="salt"):
        Codes(salt)


@pytest.mark.parametrize("bits", [0, MIN_BITS - 1, MAX_BITS + 1])
def test_a_number_of_random_bits_per_link_code_outside_the_limits_is_rejected(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        Codes(SALT, bits)
