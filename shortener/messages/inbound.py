"""This module processes the replies of recipients: it updates the opt-out list, and finds the message to which a reply belongs.

A reply belongs to the latest message that the application created for the recipient within REPLY_WINDOW. The text of the reply is
not stored.
"""

# Tested by tests/web/test_inbound.py

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from sqlalchemy import Connection, select

from shortener.ids import first_id_at
from shortener.messages.opt_outs import FROM_REPLY, add_opt_out, find_opt_outs, parse_reply, remove_opt_out
from shortener.storage.schema import messages
from shortener.storage.types import to_ms

REPLY_WINDOW = timedelta(days=30)


class Reply(NamedTuple):
    """A recorded reply. `keyword` is the meaning of its text. `is_opted_out` is true if the sender is now on the opt-out list.
    `message_id` is the id of the message to which the reply belongs, or None."""

    keyword: Literal["stop", "start"] | None
    is_opted_out: bool
    message_id: str | None


def record_reply(connection: Connection, application_id: int, phone: str, text: str, now: datetime) -> Reply:
    """Process the reply that a recipient sent from a phone number in E.164. Add the number to the application's opt-out list after
    a stop word, or remove it after a start word. Return the recorded reply."""
    keyword = parse_reply(text)
    if keyword == "stop":
        add_opt_out(connection, application_id, phone, now, FROM_REPLY)
    elif keyword == "start":
        remove_opt_out(connection, application_id, phone, only_from_reply=True)
    m = messages.c
    since = first_id_at(to_ms(now - REPLY_WINDOW))
    latest = select(m.message_id).where(m.to_address == phone, m.application_id == application_id, m.id >= since)
    message_id = connection.execute(latest.order_by(m.id.desc()).limit(1)).scalar()
    is_opted_out = bool(find_opt_outs(connection, [(application_id, phone)]))
    return Reply(keyword, is_opted_out, message_id)
