"""Codes: the random names of short links, spelled by hashids.

The secrecy of a code is its random number, 48 bits by default; hashids over the installation's salt only spells that number in
base 62 and keeps English curse words out of a text. Every code of one installation has the same length. Codes may clash (with
100 million live links, one new code in three million): the store's unique index decides, and the caller mints again.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from hashids import Hashids, _reorder

from shortener.ids import randbits

MIN_BITS, MAX_BITS = 32, 128
_MIN_SALT = 16  # characters
_MIN_SALT_VARIETY = 8  # distinct characters: "changemechangeme" has 7, a random salt of 16 has more than 10

# What hashids leaves of its 62 characters for digits, once separators and guards are taken out; the same for every salt.
_BASE = len(Hashids()._alphabet)


def code_length(bits: int) -> int:
    """Characters of a code that spells `bits` random bits: one that picks the alphabet, and digits for the largest number."""
    largest, length = (1 << bits) - 1, 1
    while largest:
        largest //= _BASE
        length += 1
    return length


#: What a code of any installation may look like, whatever bits it was minted with.
CODE_PATTERN = re.compile(rf"\A[A-Za-z0-9]{{{code_length(MIN_BITS)},{code_length(MAX_BITS)}}}\Z")


class Codes:
    """Mints the codes of one installation. `randbits` gives a random number of that many bits.

    Raises ValueError for a salt that is empty, short or a placeholder, and for bits out of MIN_BITS..MAX_BITS."""

    def __init__(self, salt: str, bits: int = 48, *, randbits: Callable[[int], int] = randbits) -> None:
        if len(salt) < _MIN_SALT or len(set(salt)) < _MIN_SALT_VARIETY:
            raise ValueError(f"the salt of codes must be random and at least {_MIN_SALT} characters long")
        if not MIN_BITS <= bits <= MAX_BITS:
            raise ValueError(f"codes must have from {MIN_BITS} to {MAX_BITS} bits")
        self.bits = bits
        self.length = code_length(bits)
        self._randbits = randbits
        self._hashids = Hashids(salt, self.length)
        # What hashids shuffles anew for each number depends on the first character alone: one alphabet for each.
        letters: str = self._hashids._alphabet
        self._first = [letters[rest % len(letters)] for rest in range(100)]
        self._alphabets = [_reorder(letters, (first + salt + letters)[: len(letters)]) for first in self._first]

    def mint(self) -> str:
        """A new code; unique only as far as chance goes."""
        return self._spell(self._randbits(self.bits))

    def _spell(self, number: int) -> str:
        """What `Hashids(salt, length).encode(number)` answers, in a fifth of the time."""
        rest = number % 100
        alphabet = self._alphabets[rest]
        code = ""
        left = number
        while left:
            left, digit = divmod(left, _BASE)
            code = alphabet[digit] + code
        if len(code) + 1 < self.length:
            padded: str = self._hashids.encode(number)
            return padded
        return self._first[rest] + code
