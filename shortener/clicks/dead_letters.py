"""A dead letter is a hit that the database rejects although it accepts other hits, or an entry of the spool that is not a hit.
Neither can be stored in the table of hits. Dead letters have a table of their own, so that an administrator can examine them. A
row contains the reason, and the hit as JSON or the unchanged entry. The service does not try again to store it as a hit. The
purge deletes the rows after `HIT_RETENTION_DAYS` days.

A row may contain a client's address and user agent. An erasure (retention/erasure.py) removes both. It finds the rows by the code
of the link. An entry that is not a hit has no code, so only the purge deletes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select

from shortener.clicks.resolver import Hit
from shortener.storage.schema import hits_dead_letter as table

MAX_TEXT_CHARACTERS = 20_000  # maximum number of characters of a stored entry; a hit is much shorter
_NAMES = ("id", "code", "domain_id", "at", "verdict", "rule", "address", "user_agent")


class DeadLetter(NamedTuple):
    """A hit as JSON, or an entry of the spool that is not a hit. `code` is the code of the hit; None for an entry that is not a
    hit."""

    hit: str
    code: str | None
    reason: str


def from_hit(hit: Hit, reason: str, *, has_address: bool = True) -> DeadLetter:
    """Return a dead letter that contains this hit. `has_address` states whether the dead letter may contain the client's IP
    address."""
    fields: dict[str, Any] = {name: getattr(hit, name) for name in _NAMES}
    if not has_address:
        fields["address"] = ""
    # The module json is used instead of orjson, because orjson cannot encode large integers.
    return DeadLetter(json.dumps(fields), str(hit.code), reason)


def from_entry(content: bytes, reason: str) -> DeadLetter:
    """Return a dead letter that contains an entry of the spool which is not a hit."""
    text = content.decode("utf-8", "backslashreplace").replace("\x00", "\\x00")
    try:
        fields = json.loads(text)
        # A text with a surrogate or with NUL is not used as the code: it cannot be a code, and the database would reject it.
        code = fields["code"] if isinstance(fields["code"], str) and fields["code"].isprintable() else None
    except (ValueError, KeyError, TypeError, RecursionError):
        code = None
    return DeadLetter(text, code, reason)


def reason_of(error: BaseException) -> str:
    """Return the first line of an error. The other lines are left out, because in an error of PostgreSQL they contain values of
    the row."""
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {cause}".partition("\n")[0]


def store(connection: Connection, letters: Sequence[DeadLetter], now: datetime) -> None:
    """Insert at least one dead letter."""
    rows = [
        {
            "hit": letter.hit[:MAX_TEXT_CHARACTERS],
            "code": letter.code and letter.code[:MAX_TEXT_CHARACTERS].replace("\x00", "\\x00"),
            "reason": letter.reason[:MAX_TEXT_CHARACTERS].replace("\x00", "\\x00"),
            "at": now,
        }
        for letter in letters
    ]
    connection.execute(insert(table), rows)


def count(connection: Connection) -> int:
    """Return the number of dead letters in the table."""
    return connection.execute(select(func.count()).select_from(table)).scalar_one()
