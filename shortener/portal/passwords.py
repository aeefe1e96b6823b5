"""This module hashes and checks the passwords of operators with Argon2id, and rejects weak new passwords.

The parameters are those that OWASP recommends: one hash takes about 20 ms of processor time and 19 MiB of memory. With the
library's default parameters, a hash would take eight times as long. This is too long for a process that also serves redirects.

A single thread computes all hashes, one after the other, so that many sign-ins do not delay clicks. Several threads would also
need more memory: each would keep 19 MiB, because the allocator of glibc does not return this memory to the operating system. For
an unknown name, the check verifies the hash of a random password. Therefore the response time does not reveal whether a name
exists.

The library `argon2` is imported at the first use, because most processes never need it.
"""
# Tested by tests/portal/test_signin.py

from __future__ import annotations

import asyncio
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from shortener.errors import ApiError, Detail, ErrorCode

if TYPE_CHECKING:
    from argon2 import PasswordHasher

MIN_CHARACTERS = 12
MAX_CHARACTERS = 128
MEMORY_KIB, PASSES, LANES = 19 * 1024, 2, 1

_NOT_LETTERS = re.compile(r"[\W\d_]+")
_COMMON = Path(__file__).with_name("common_passwords.txt")


class Passwords:
    """Hashes and checks passwords without blocking the event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "passwords")
        self._dummy: str | None = None

    async def hash(self, password: str) -> str:
        """Return the Argon2id hash of a password, with its parameters and its salt."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: _hasher().hash(password))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Return whether a password matches a stored hash. `stored` is None if the operator does not exist or has no password;
        then return False.

        The check takes the same time with and without a stored hash."""
        if len(password) > MAX_CHARACTERS:
            password, stored = "", None
        if stored is None and self._dummy is None:
            self._dummy = await self.hash(secrets.token_urlsafe(16))
        loop = asyncio.get_running_loop()
        matches = await loop.run_in_executor(self._thread, _verify, stored or self._dummy or "", password)
        return matches and stored is not None


def check_new_password(password: str, name: str = "", field: str = "password") -> None:
    """Raise ApiError INVALID_REQUEST if a new password is too short, too long, too common or the name of the operator."""
    reason = None
    if len(password) < MIN_CHARACTERS:
        reason = f"must have at least {MIN_CHARACTERS} characters; several words are easy to remember"
    elif len(password) > MAX_CHARACTERS:
        reason = f"must have at most {MAX_CHARACTERS} characters"
    elif {password.casefold(), _NOT_LETTERS.sub("", password.casefold())} & {"", *_common_passwords()}:
        reason = "is one of the most common passwords, or one of them with added digits; attackers try these first"
    elif len(set(password)) < 5 or (name and password.casefold().strip() == name.casefold()):
        reason = "must not be your name or a repetition of few characters"
    if reason is not None:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(field, reason)])


@cache
def _common_passwords() -> frozenset[str]:
    return frozenset(_COMMON.read_text().split())


@cache
def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher  # argon2 is imported here, because only processes that check passwords need it.

    return PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES)


def _verify(stored: str, password: str) -> bool:
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        return _hasher().verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False
