"""The opt-out list of an application: recipients who refused further messages.

A recipient refuses further messages by a reply with one of STOP_WORDS, and permits them again by a reply with one of START_WORDS.
A reply does not remove an entry that an administrator has made. Otherwise an API key that may only send messages could remove
such an entry by reporting a reply. The word must be the whole reply: "please stop by tomorrow" refuses nothing. Upper and lower
case make no difference, and spaces and punctuation around the word are ignored. The words follow the handbook of CTIA (United
States) and the lists of common providers, with the usual words of other languages.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Integer, Text, and_, delete, select, update

from shortener.storage import schema
from shortener.storage.database import upsert
from shortener.storage.values_table import values_table

STOP_WORDS = frozenset(
    {
        *("STOP", "STOPALL", "STOP ALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "OPTOUT", "OPT OUT", "REVOKE", "REMOVE"),
        *("ARRET", "ARRÊT", "DESABONNER", "DÉSABONNER"),  # words in French
        *("BAJA", "ALTO", "PARAR", "DETENER", "SALIR"),  # words in Spanish and Portuguese
        *("STOPP", "ABMELDEN", "ABBESTELLEN"),  # words in German
        *("FERMA", "DISISCRIVI"),  # words in Italian
        *("СТОП", "ОТПИСКА"),  # words in Russian
        *("停止", "退订", "配信停止", "중지"),
        *("توقف", "إلغاء"),
    }
)
START_WORDS = frozenset({"START", "UNSTOP", "SUBSCRIBE", "RESUME", "OPTIN", "OPT IN", "СТАРТ"})
_MAX_WORD_CHARACTERS = 40
#: The source of an opt-out entry that a reply of the recipient created. The other sources are "api" (an API call) and "operator"
#: (the command line).
FROM_REPLY = "STOP"


def parse_reply(text: str) -> Literal["stop", "start"] | None:
    """Return the meaning of a reply for the opt-out list: "stop" or "start"; None if its text is not one of the words."""
    word = unicodedata.normalize("NFC", text.strip())
    if len(word) > _MAX_WORD_CHARACTERS:
        return None
    word = re.sub(r"[\s_-]+", " ", re.sub(r"^[\W_]+|[\W_]+$", "", word)).upper()
    if word in STOP_WORDS:
        return "stop"
    return "start" if word in START_WORDS else None


def add_opt_out(connection: Connection, application_id: int, phone: str, now: datetime, source: str) -> bool:
    """Add a number in E.164 to the opt-out list of an application. Return False if the number was already on the list.

    `source` is FROM_REPLY, "api" or "operator". If the number is already on the list, its source changes only if the old source is
    FROM_REPLY."""
    table = schema.opt_outs
    row = {"application_id": application_id, "phone": phone, "at": now, "source": source}
    if connection.execute(upsert(connection, table).values(row).on_conflict_do_nothing()).rowcount:
        return True
    from_reply = table.c.application_id == application_id, table.c.phone == phone, table.c.source == FROM_REPLY
    connection.execute(update(table).where(*from_reply).values(source=source))
    return False


def remove_opt_out(connection: Connection, application_id: int, phone: str, *, only_from_reply: bool = False) -> bool:
    """Remove a number in E.164 from the opt-out list of an application. Return whether it was on the list.

    If `only_from_reply` is true, keep an entry that was not created by a reply."""
    table = schema.opt_outs
    chosen = [table.c.application_id == application_id, table.c.phone == phone]
    if only_from_reply:
        chosen.append(table.c.source == FROM_REPLY)
    return connection.execute(delete(table).where(*chosen)).rowcount > 0


def find_opt_outs(connection: Connection, recipients: Iterable[tuple[int, str]]) -> set[tuple[int, str]]:
    """Return the recipients, as (application id, number in E.164), that are on the opt-out list of their application."""
    table = schema.opt_outs
    chosen = values_table(connection, sorted(set(recipients)), application_id=Integer, phone=Text)
    statement = select(table.c.application_id, table.c.phone).join_from(
        chosen, table, and_(table.c.application_id == chosen.c.application_id, table.c.phone == chosen.c.phone)
    )
    return {(row.application_id, row.phone) for row in connection.execute(statement)}


def find_refused_applications(connection: Connection, phone: str, application_id: int | None) -> list[int]:
    """Return the ids of the applications whose opt-out list contains `phone`, a number in E.164. If `application_id` is not None,
    search only the list of this application."""
    table = schema.opt_outs
    statement = select(table.c.application_id).where(table.c.phone == phone).order_by(table.c.application_id)
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    return list(connection.scalars(statement))


def find_opt_out(connection: Connection, application_id: int, phone: str) -> dict[str, Any]:
    """Return the entry of a number that is on the opt-out list of an application."""
    table = schema.opt_outs
    statement = select(table).where(table.c.application_id == application_id, table.c.phone == phone)
    return connection.execute(statement).one()._asdict()


def list_opt_outs(connection: Connection, application_id: int, after: str = "", limit: int = 1000) -> list[dict[str, Any]]:
    """Return the opt-out list of an application in the order of the numbers, `limit` rows after the number `after`."""
    table = schema.opt_outs
    statement = select(table).where(table.c.application_id == application_id, table.c.phone > after)
    return [row._asdict() for row in connection.execute(statement.order_by(table.c.phone).limit(limit))]
