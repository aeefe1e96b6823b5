"""Identifiers: the numbers that rows are keyed by, and how they are spelled outside.

Row ids are 63-bit numbers that grow with time (41 bits of milliseconds, 10 bits of node, 12 bits of counter), made in the
process, so that a batch can refer to its own rows before it is written, and inserts go to the end of each index.
A `click_id` leaves the service in destination URLs, where strangers see it; it carries a keyed check, so that nobody can make
up the click id of another recipient.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
import time
from collections.abc import Callable

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VALUES = {character: value for value, character in enumerate(ALPHABET)}
_PAIRS = [a + b for a in ALPHABET for b in ALPHABET]
_EPOCH_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
_NODE_BITS, _COUNTER_BITS = 10, 12
MAX_NODES = 1 << _NODE_BITS
_ID_LENGTH = 11  # 62 ** 11 > 2 ** 63
_CHECK_LENGTH = 8  # 47 bits: a guess is right once in 10^14


class IdGenerator:
    """Makes row ids that are unique among up to 1,024 nodes and strictly growing within one; safe to call from any thread."""

    def __init__(self, node: int, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        if not 0 <= node < MAX_NODES:
            raise ValueError(f"node must be from 0 to {MAX_NODES - 1}")
        self._node = node << _COUNTER_BITS
        self._now_ms = now_ms
        self._tick = 0  # milliseconds since the epoch of ids, then the counter
        self._lock = threading.Lock()

    def __call__(self) -> int:
        tick = (self._now_ms() - _EPOCH_MS) << _COUNTER_BITS
        with self._lock:
            # A clock that stands still or steps back only uses up counters of the last millisecond, then borrows from the next.
            if tick <= self._tick:
                tick = self._tick + 1
            self._tick = tick
        return (tick >> _COUNTER_BITS) << (_COUNTER_BITS + _NODE_BITS) | self._node | tick & ((1 << _COUNTER_BITS) - 1)


def first_id_at(ms: int) -> int:
    """The least id that a clock makes at `ms` since 1970. Every id below it is older, so an age is a range of a primary key."""
    return min(max(ms - _EPOCH_MS, 0) << (_NODE_BITS + _COUNTER_BITS), (1 << 63) - 1)


def id_span(ms: int) -> int:
    """By how much two ids differ that were made so many milliseconds apart, give or take those of other nodes."""
    return ms << (_NODE_BITS + _COUNTER_BITS)


def encode(number: int, length: int = _ID_LENGTH) -> str:
    """Base 62, padded to `length` characters."""
    pairs = []
    for _ in range(length // 2):
        number, rest = divmod(number, 3844)
        pairs.append(_PAIRS[rest])
    if length % 2:
        pairs.append(ALPHABET[number % 62])
    pairs.reverse()
    return "".join(pairs)


def decode(text: str) -> int | None:
    """The number that `encode` spelled, or None."""
    if len(text) != _ID_LENGTH:
        return None
    number = 0
    for character in text:
        value = _VALUES.get(character)
        if value is None:
            return None
        number = number * 62 + value
    return number if number < 1 << 63 else None


def new_message_id() -> str:
    """22 random base-62 characters, like Syniverse's."""
    return encode(randbits(131), 22)


class _Randomness:
    """What the operating system gives, asked for a page at a time: a call for every code and id costs more than what it is for."""

    def __init__(self) -> None:
        self._bytes = b""
        self._used = 0
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def __call__(self, bits: int) -> int:
        """A number of so many random bits, from 1 to 8,000; every bit of the page is used once."""
        size = (bits + 7) // 8
        with self._lock:
            if self._used + size > len(self._bytes):
                self._bytes, self._used = os.urandom(4096), 0
            taken = self._bytes[self._used : self._used + size]
            self._used += size
        return int.from_bytes(taken) >> (size * 8 - bits)

    def _forget(self) -> None:
        self._bytes, self._lock = b"", threading.Lock()


randbits = _Randomness()


class ClickIds:
    """Spells hit ids as click ids, 19 characters, and knows its own again."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encode(self, hit: int) -> str:
        return encode(hit) + self._check(hit)

    def decode(self, click_id: str) -> int | None:
        """The hit id, or None when this installation did not make the click id."""
        hit = decode(click_id[:_ID_LENGTH])
        if hit is None or not hmac.compare_digest(click_id[_ID_LENGTH:].encode(), self._check(hit).encode()):
            return None
        return hit

    def _check(self, hit: int) -> str:
        digest = hashlib.blake2b(hit.to_bytes(8), key=self._key, digest_size=8).digest()
        return encode(int.from_bytes(digest) % 62**_CHECK_LENGTH, _CHECK_LENGTH)
