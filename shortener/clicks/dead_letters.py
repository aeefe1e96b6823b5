"""Dead letters: hits that can never be stored, for a person to look at.

The database takes other hits and rejects this one, or an entry of the spool is not a hit. The row has the hit as JSON, or the entry
as it was, and the reason. Nothing reads the rows again; they stay until `HIT_RETENTION_DAYS` are over.

A row may have the address and the user agent of a client. An erasure (retention/erasure.py) removes both. It finds the rows by the
code of the link. An entry that is not a hit has no code, so an erasure cannot find it; the retention deletes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select

from shortener.clicks.resolver import Hit
from shortener.storage.schema import hits_dead_letter as table

MAX_TEXT_CHARACTERS = 20_000  # of a stored entry; a hit is much shorter
_NAMES = ("id", "code", "domain_id", "at", "verdict", "rule", "address", "user_agent")


class DeadLetter(NamedTuple):
    """A hit as JSON, or the content of an entry that is not a hit (`code` None)."""

    hit: str
    code: str | None
    reason: str


def from_hit(hit: Hit, reason: str, *, has_address: bool = True) -> DeadLetter:
    """Return the dead letter of a hit. `has_address` False: it must not contain the client's address."""
    fields: dict[str, Any] = {name: getattr(hit, name) for name in _NAMES}
    if not has_address:
        fields["address"] = ""
    return DeadLetter(json.dumps(fields), str(hit.code), reason)  # unlike orjson, json encodes integers of any size


def from_entry(content: bytes, reason: str) -> DeadLetter:
    """Return the dead letter of an entry of a stream."""
    text = content.decode("utf-8", "backslashreplace").replace("\x00", "\\x00")
    try:
        fields = json.loads(text)
        code = fields["code"] if isinstance(fields["code"], str) and "\x00" not in fields["code"] else None
    except (ValueError, KeyError, TypeError):
        code = None
    return DeadLetter(text, code, reason)


def reason_of(error: BaseException) -> str:
    """Return one line about an error, without the values that further lines of PostgreSQL contain."""
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {cause}".partition("\n")[0]


def store(connection: Connection, letters: Sequence[DeadLetter], now: datetime) -> None:
    """Insert dead letters, at least one."""
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
    """Return the number of dead letters."""
    return connection.execute(select(func.count()).select_from(table)).scalar_one()
