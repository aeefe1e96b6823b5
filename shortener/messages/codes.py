"""Random codes of short links, encoded by hashids.

A code is secret because its number is random (48 bits by default). hashids, with the installation's salt, only encodes the number
in base 62 and avoids English curse words. All codes of one installation have the same length. Two codes can be equal (with
100 million live links, one new code in three million). The unique index of the database rejects the second one, and the caller
mints another code.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from hashids import Hashids

from shortener.ids import randbits

MIN_BITS, MAX_BITS = 32, 128
_MIN_SALT_CHARACTERS = 16
_MIN_DISTINCT_SALT_CHARACTERS = 8  # "changemechangeme" has 7; a random salt of 16 characters has more than 10

# Digits that hashids uses; it reserves its other characters. It is the first number whose code has two digits after its first
# character, which selects the alphabet; equal for every salt.
_BASE = next(number for number in range(1, 63) if len(Hashids().encode(number)) == 3)
# hashids chooses the alphabet of a number by this remainder (the algorithm of hashids, part of its compatibility promise).
_ALPHABETS = 100


def code_length(bits: int) -> int:
    """Return the length of a code with `bits` random bits: one character for the alphabet, and the digits of the largest number."""
    largest, length = (1 << bits) - 1, 1
    while largest:
        largest //= _BASE
        length += 1
    return length


#: Matches the codes of any installation, for any permitted number of bits.
CODE_PATTERN = re.compile(rf"\A[A-Za-z0-9]{{{code_length(MIN_BITS)},{code_length(MAX_BITS)}}}\Z")


class Codes:
    """Generator of the codes of one installation. `randbits(bits)` returns a random number of that many bits.

    Raises ValueError if the salt is empty, short or a placeholder, or if `bits` is not in MIN_BITS..MAX_BITS."""

    def __init__(self, salt: str, bits: int = 48, *, randbits: Callable[[int], int] = randbits) -> None:
        if len(salt) < _MIN_SALT_CHARACTERS or len(set(salt)) < _MIN_DISTINCT_SALT_CHARACTERS:
            raise ValueError(f"the salt of codes must be random and at least {_MIN_SALT_CHARACTERS} characters long")
        if not MIN_BITS <= bits <= MAX_BITS:
            raise ValueError(f"codes must have from {MIN_BITS} to {MAX_BITS} bits")
        self.bits = bits
        self.length = code_length(bits)
        self._randbits = randbits
        self._hashids = Hashids(salt, self.length)
        self._alphabets = _read_alphabets(Hashids(salt))

    def mint(self) -> str:
        """Return a new random code. It is unique only with high probability."""
        return self._encode(self._randbits(self.bits))

    def _encode(self, number: int) -> str:
        """Return the same text as `Hashids(salt, length).encode(number)`, in a fifth of the time."""
        first, alphabet = self._alphabets[number % _ALPHABETS]
        digits = ""
        remaining = number
        while remaining:
            remaining, digit = divmod(remaining, _BASE)
            digits = alphabet[digit] + digits
        if len(digits) + 1 < self.length:
            padded: str = self._hashids.encode(number)
            return padded
        return first + digits


def _read_alphabets(hashids: Hashids) -> list[tuple[str, str]]:
    """Return the first character of a code and its digits in order of value, for each remainder of a number.

    They are read from the codes of numbers that contain every digit, because hashids has no public access to its alphabets."""
    every_digit = 0
    for digit in reversed(range(_BASE)):
        every_digit = every_digit * _BASE + digit
    every_digit *= _BASE**2  # leaves two digits to choose the remainder
    alphabets = []
    for remainder in range(_ALPHABETS):
        code: str = hashids.encode(every_digit + (remainder - every_digit) % _ALPHABETS)
        alphabets.append((code[0], code[_BASE:0:-1]))
    return alphabets
