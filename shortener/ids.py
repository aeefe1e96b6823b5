"""This module generates row ids, and converts them to the public ids of the API and back.

A row id is a 63-bit number that grows with time: 41 bits of milliseconds, 10 bits for the node and 12 bits for a counter. The
process generates the ids, and not the database. Therefore the rows of a batch can refer to each other before they are written.
New ids are larger than old ones, so an insert appends to the end of an index.

A `click_id` is part of destination URLs, where others can read it. It contains a check value that only this installation can
compute, so nobody can guess the click id of another recipient.
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
_EPOCH_MS = 1_767_225_600_000  # The time in an id counts milliseconds since 2026-01-01T00:00:00Z.
_NODE_BITS, _COUNTER_BITS = 10, 12
MAX_NODES = 1 << _NODE_BITS
_ID_LENGTH = 11  # Eleven characters in base 62 can hold 63 bits, because 62 ** 11 > 2 ** 63.
MAX_ROW_ID = (1 << 63) - 1
#: The largest id in tables with ids that the database generates (applications, keys, trackers, gateways). Their id columns have 32
#: bits, and PostgreSQL rejects larger values.
MAX_COUNTED_ID = 2**31 - 1
_CHECK_LENGTH = 8  # Eight characters contain 47 bits, so only one of 10^14 guessed click ids is valid.


class IdGenerator:
    """A generator of row ids. The ids are unique among 1,024 nodes and strictly increasing within a process. The generator is
    thread-safe."""

    def __init__(self, node: int, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._now_ms = now_ms
        self._tick = 0  # The high bits are milliseconds since _EPOCH_MS, and the low bits are the counter.
        self._lock = threading.Lock()
        self._node = 0  # The node number, shifted to its position in an id.
        self.use_node(node)

    def use_node(self, node: int) -> None:
        """Use another node number in all later ids. They are still larger than all earlier ids of this process."""
        if not 0 <= node < MAX_NODES:
            raise ValueError(f"node must be from 0 to {MAX_NODES - 1}")
        with self._lock:
            self._node = node << _COUNTER_BITS
            if self._tick:
                # All counter bits are set, so that the next id is in the next millisecond.
                self._tick |= (1 << _COUNTER_BITS) - 1

    def continue_after(self, row_id: int) -> None:
        """Generate only ids that are larger than `row_id`, whether this process or another node has generated `row_id`."""
        tick = row_id >> (_COUNTER_BITS + _NODE_BITS) << _COUNTER_BITS | (1 << _COUNTER_BITS) - 1
        with self._lock:
            self._tick = max(self._tick, tick)

    def __call__(self) -> int:
        tick = (self._now_ms() - _EPOCH_MS) << _COUNTER_BITS
        with self._lock:
            # If the clock stops or is set back, the counter continues. When the counter overflows, it moves to the next
            # millisecond.
            if tick <= self._tick:
                tick = self._tick + 1
            self._tick = tick
        return (tick >> _COUNTER_BITS) << (_COUNTER_BITS + _NODE_BITS) | self._node | tick & ((1 << _COUNTER_BITS) - 1)


def first_id_at(ms: int) -> int:
    """Return the smallest id that can be generated at `ms`, a time in milliseconds since 1970. Every smaller id is older."""
    return min(max(ms - _EPOCH_MS, 0) << (_NODE_BITS + _COUNTER_BITS), MAX_ROW_ID)


def ms_of(row_id: int) -> int:
    """Return the time at which an id was generated, in milliseconds since 1970."""
    return (row_id >> (_NODE_BITS + _COUNTER_BITS)) + _EPOCH_MS


def id_span(ms: int) -> int:
    """Return the difference between two ids that were generated `ms` milliseconds apart, if their node and counter bits are
    equal."""
    return ms << (_NODE_BITS + _COUNTER_BITS)


def encode(number: int, length: int = _ID_LENGTH) -> str:
    """Return a number in base 62, padded with zeros to `length` characters."""
    pairs = []
    for _ in range(length // 2):
        number, remainder = divmod(number, 3844)
        pairs.append(_PAIRS[remainder])
    if length % 2:
        pairs.append(ALPHABET[number % 62])
    pairs.reverse()
    return "".join(pairs)


def decode(text: str) -> int | None:
    """Return the row id that `encode` has encoded as this text. Return None for any other text."""
    if len(text) != _ID_LENGTH:
        return None
    number = 0
    for character in text:
        value = _VALUES.get(character)
        if value is None:
            return None
        number = number * 62 + value
    return number if number <= MAX_ROW_ID else None


def parse_counted_id(text: str) -> int | None:
    """Return the decimal number in a text. Return None if it cannot be an id of a table whose ids the database generates (see
    MAX_COUNTED_ID)."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_COUNTED_ID))
    return int(text) if is_number and int(text) <= MAX_COUNTED_ID else None


class PublicIds:
    """A converter between the row ids of one table and public ids with a prefix, such as `dlv_0AbCdEfGh12`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def encode(self, row_id: int) -> str:
        """Return the public id of a row."""
        return self._prefix + encode(row_id)

    def decode(self, text: str) -> int | None:
        """Return the row id of a public id; None if the text is not such an id. The prefix may be missing, because older releases
        created ids without a prefix."""
        return decode(text.removeprefix(self._prefix))


CONVERSION_IDS = PublicIds("cnv_")
DELIVERY_IDS = PublicIds("dlv_")
LINK_UPDATE_IDS = PublicIds("upd_")
REPLAY_IDS = PublicIds("rpl_")
REFUSED_REPORT_IDS = PublicIds("rfs_")


_MESSAGE_ID_LENGTH = 22
# A byte below 248 (4 x 62) becomes one of the 62 characters, and any other byte is dropped. Four bytes stand for each character,
# so all characters are equally probable.
_TO_BASE62 = bytes(ord(ALPHABET[byte % 62]) for byte in range(256))
_BEYOND_BASE62 = bytes(range(248, 256))


class _RandomBytes:
    """A source of random bytes of the operating system. `convert` is applied to each block of bytes that the source reads.

    A block has 4,096 bytes, because a system call for each id would be slow."""

    def __init__(self, convert: Callable[[bytes], bytes] = bytes) -> None:
        self._convert = convert
        self._bytes = b""
        self._used = 0
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._discard)

    def take(self, size: int) -> bytes:
        """Return `size` random bytes, at most 1,000. No byte is returned twice."""
        with self._lock:
            if self._used + size > len(self._bytes):
                self._bytes, self._used = self._convert(os.urandom(4096)), 0
            taken = self._bytes[self._used : self._used + size]
            self._used += size
        return taken

    def _discard(self) -> None:
        self._bytes, self._lock = b"", threading.Lock()


_bytes = _RandomBytes()
_base62 = _RandomBytes(lambda block: block.translate(_TO_BASE62, _BEYOND_BASE62))


def randbits(bits: int) -> int:
    """Return a random number with `bits` bits. `bits` is from 1 to 8,000."""
    size = (bits + 7) // 8
    return int.from_bytes(_bytes.take(size)) >> (size * 8 - bits)


def new_message_id() -> str:
    """Return a random message id of 22 base-62 characters, in the form of Syniverse."""
    return _base62.take(_MESSAGE_ID_LENGTH).decode()


class ClickIds:
    """A converter between hit ids and click ids. A click id has 19 characters: the hit id, and a check value made with a secret
    key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encode(self, hit: int) -> str:
        """Return the click id of a hit."""
        return encode(hit) + self._check(hit)

    def decode(self, click_id: str) -> int | None:
        """Return the hit id of a click id; None if this installation did not create the click id."""
        hit = decode(click_id[:_ID_LENGTH])
        if hit is None or not hmac.compare_digest(click_id[_ID_LENGTH:].encode(), self._check(hit).encode()):
            return None
        return hit

    def _check(self, hit: int) -> str:
        digest = hashlib.blake2b(hit.to_bytes(8), key=self._key, digest_size=8).digest()
        return encode(int.from_bytes(digest) % 62**_CHECK_LENGTH, _CHECK_LENGTH)
