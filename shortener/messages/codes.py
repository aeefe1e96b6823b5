"""Generator for the random codes of short links.

A code is hard to guess because it is a random number (48 bits by default). The hashids library, with the salt of the installation,
only encodes the number in base 62 and avoids English curse words. All codes of one installation have the same length. A new code
can be equal to an existing code (with 100 million live links, one new code in three million). The unique index of the database then
rejects the new code, and the caller generates another one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from hashids import Hashids

from shortener.ids import randbits

MIN_BITS, MAX_BITS = 32, 128
_MIN_SALT_CHARACTERS = 16
# A salt must have at least this many different characters. The placeholder "changemechangeme" has 7; a random salt of 16 characters
# has more than 10.
_MIN_DISTINCT_SALT_CHARACTERS = 8

# The base in which hashids writes numbers. A code consists of one character and the digits of the number. The base itself is the
# smallest number with two digits, so it is the smallest number whose code has three characters.
_BASE = next(number for number in range(1, 63) if len(Hashids().encode(number)) == 3)
# hashids selects the alphabet for a number by the last two decimal digits of the number. hashids promises to keep this algorithm.
_ALPHABETS = 100


def code_length(bits: int) -> int:
    """Return the number of characters of a code with `bits` random bits."""
    largest, length = (1 << bits) - 1, 1
    while largest:
        largest //= _BASE
        length += 1
    return length


class Codes:
    """Generator for the codes of one installation. `randbits(bits)` must return a random number with that many bits.

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
        self._alphabet = cache(partial(_read_alphabet, Hashids(salt)))

    def mint(self) -> str:
        """Return a new random code. With a very small probability, the same code exists already."""
        return self._encode(self._randbits(self.bits))

    def _encode(self, number: int) -> str:
        """Return the code of a number. The result equals `Hashids(salt, length).encode(number)`, but this is five times as fast."""
        first, alphabet = self._alphabet(number % _ALPHABETS)
        digits = ""
        remaining = number
        while remaining:
            remaining, digit = divmod(remaining, _BASE)
            digits = alphabet[digit] + digits
        if len(digits) + 1 < self.length:
            padded: str = self._hashids.encode(number)
            return padded
        return first + digits


@cache
def _every_digit() -> int:
    """Return a number that contains every digit in base _BASE and ends with two zeros. If a number below 100 is added, only the
    last two digits change."""
    number = 0
    for digit in reversed(range(_BASE)):
        number = number * _BASE + digit
    return number * _BASE**2


def _read_alphabet(hashids: Hashids, remainder: int) -> tuple[str, str]:
    """Return the alphabet that hashids uses for numbers with this remainder (modulo 100). The alphabet is the first character of
    the code, and the digits in order.

    hashids has no public function for its alphabets. Therefore this function encodes a number that contains every digit, and reads
    the alphabet from the code."""
    number = _every_digit()
    code: str = hashids.encode(number + (remainder - number) % _ALPHABETS)
    return code[0], code[_BASE:0:-1]
