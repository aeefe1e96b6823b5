"""This module reads the status of one message: its state and times, its links and their first clicks, and its conversions. Every
SQL statement uses an index. The status can be returned in the format of this service or in the format of Xoxzo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, and_, func, select, text

from shortener.accounts.directory import short_url
from shortener.conversions.queries import StoredRevision, find_revisions
from shortener.delivery.event_fields import exact_number
from shortener.gateways.sends import StoredSend, find_send, send_attempt_fields, send_fields
from shortener.logs import mask_parameters
from shortener.model import HitFlag, State, record
from shortener.reporting.conversions import serialize_conversion
from shortener.reporting.links import LinkClicks, count_clicks
from shortener.reporting.messages import MESSAGE_COLUMNS, MessageFilter, list_messages, serialize_message, shown_number
from shortener.storage.schema import cohorts, conversions, first_clicks, hits, links, messages, other_hits, previous_state
from shortener.storage.types import AnyRow, to_iso

_MESSAGES_PER_STATEMENT = 500
#: The maximum number of conversions in the status of a message. If there are more, the status contains the oldest.
MAX_CONVERSIONS = 1000


@record
class MessageStatus:
    """The database rows of a message, its links and its conversions. `revisions` contains the earlier revisions of each
    conversion, by the row id of the conversion."""

    message: AnyRow
    links: Sequence[AnyRow]
    conversions: Sequence[AnyRow]
    revisions: Mapping[int, Sequence[StoredRevision]]
    clicks: Mapping[int, LinkClicks] = field(default_factory=dict)  # The clicks of each link, by the row id of the link.
    # The row and the attempts of the message in the queue of its gateway, or None if no gateway sends the message.
    send: StoredSend | None = None


_first, _other = hits.alias("first"), hits.alias("other")
_LINK = (
    links.c.id.label("link_id"),
    links.c.code,
    links.c.domain_id,
    links.c.path,
    links.c.url,
    links.c.label,
    links.c.expires_at,
    # The first click on a link is either the first click of the message, or a hit with the flag FIRST_FOR_LINK.
    func.coalesce(_first.c.at, _other.c.at).label("accessed_on"),
)
_is_first_hit_of_link = and_(
    _other.c.link_id == links.c.id, other_hits("other"), text(f"other.flags & {int(HitFlag.FIRST_FOR_LINK)} <> 0")
)


def find_status(connection: Connection, application_id: int, message_id: str) -> MessageStatus | None:
    """Return the status of a message. Return None if the application has no message with this id."""
    statement = (
        select(*MESSAGE_COLUMNS, previous_state.label("previous_state"), messages.c.metadata, *_LINK)
        .join_from(messages, cohorts, cohorts.c.id == messages.c.cohort_id)
        .outerjoin(first_clicks, first_clicks.c.id == messages.c.id)
        .outerjoin(links, links.c.message_id == messages.c.id)
        .outerjoin(_first, and_(_first.c.id == first_clicks.c.hit_id, _first.c.link_id == links.c.id))
        .outerjoin(_other, _is_first_hit_of_link)
        .where(messages.c.application_id == application_id, messages.c.message_id == message_id)
        .order_by(links.c.position)
    )
    rows = connection.execute(statement).all()
    if not rows:
        return None
    c = conversions.c
    statement = select(conversions).where(c.message_id == rows[0].id).order_by(c.id).limit(MAX_CONVERSIONS)
    converted = connection.execute(statement).all()
    revisions = find_revisions(connection, [row.id for row in converted if row.revision > 1])
    of_links = [row for row in rows if row.code is not None]
    clicks = count_clicks(connection, [(row.link_id, row.id) for row in of_links])
    return MessageStatus(rows[0], of_links, converted, revisions, clicks, find_send(connection, rows[0].id))


def list_first_links(connection: Connection, filters: MessageFilter, limit: int) -> list[MessageStatus]:
    """Return the newest `limit` messages without their conversions. Each message has only its first link.

    The list may be shorter if the filters have no index (see reporting/messages.py)."""
    found = list_messages(connection, filters, limit).rows
    first: dict[int, AnyRow] = {}
    for start in range(0, len(found), _MESSAGES_PER_STATEMENT):
        some = [row.id for row in found[start : start + _MESSAGES_PER_STATEMENT]]
        statement = (
            select(links.c.message_id, *_LINK)
            .outerjoin(first_clicks, first_clicks.c.id == links.c.message_id)
            .outerjoin(_first, and_(_first.c.id == first_clicks.c.hit_id, _first.c.link_id == links.c.id))
            .outerjoin(_other, _is_first_hit_of_link)
            .where(links.c.message_id.in_(some), links.c.position == 0)
        )
        first |= {row.message_id: row for row in connection.execute(statement)}
    return [MessageStatus(row, [first[row.id]] if row.id in first else [], (), {}) for row in found]


@record
class MessageStatusReader:
    """Converts the status of messages to API responses. `base_url` returns the first part of the short URLs of a domain.
    `click_id` encodes the id of a hit.
    """

    base_url: Callable[[int], str]
    click_id: Callable[[int], str]

    def serialize(self, status: MessageStatus, *, reveal: bool) -> dict[str, Any]:
        """Return the status of a message in the format of `GET /api/v1/sms/status/{message_id}`.

        All phone numbers, including those in the metadata, are masked unless `reveal` is true."""
        message = status.message
        return {
            **serialize_message(message, reveal=reveal),
            "previous_state": None if message.previous_state is None else State(message.previous_state).name,
            "metadata": message.metadata if reveal else mask_parameters(message.metadata),
            "link_tracking": self._link_tracking(status),
            "links": [self._link(link, status.clicks.get(link.link_id, LinkClicks())) for link in status.links],
            "conversions": [
                serialize_conversion(conversion, status.revisions.get(conversion.id, ()), self.click_id, reveal=reveal)
                for conversion in status.conversions
            ],
            "send": None if status.send is None else serialize_send(status.send),
        }

    def serialize_xoxzo(self, status: MessageStatus, url: str, *, reveal: bool) -> dict[str, Any]:
        """Return the status of a message in the format of Xoxzo. `url` is the URL of this status. The phone number is masked unless
        `reveal` is true. A message that was read or clicked has the status DELIVERED; only `link_tracking` shows the click."""
        message = status.message
        state = State(message.state)
        return {
            "msgid": message.message_id,
            "status": (State.DELIVERED if state > State.DELIVERED else state).name,
            "sender": message.from_address or message.sender_id_alias or message.sender_id_id,
            "recipient": shown_number(message.to_address, reveal=reveal),
            "url": url,
            "sent_time": serialize_xoxzo_time(message.sent_at or message.created_at),
            "cost": exact_number(message.mt_price),  # In Xoxzo's format, the cost is a JSON number.
            "parts": message.segments if message.fragments_count is None else message.fragments_count,
            "tags": [message.campaign] if message.campaign else [],
            "link_tracking": self._link_tracking(status),
        }

    def _link_tracking(self, status: MessageStatus) -> dict[str, Any] | None:
        """Return Xoxzo's field `link_tracking`, which has room for one link: the first link of the message. Return None if the
        message has no links."""
        if not status.links:
            return None
        link = status.links[0]
        return {
            "link": link.url,
            "shortlink": self._short_url(link),
            "accessed": link.accessed_on is not None,
            "accessed_on": serialize_xoxzo_time(link.accessed_on),
        }

    def _link(self, link: AnyRow, clicks: LinkClicks) -> dict[str, Any]:
        return {
            "code": link.code,
            "short_url": self._short_url(link),
            "url": link.url,
            "label": link.label,
            "expires_at": to_iso(link.expires_at),
            "accessed": link.accessed_on is not None,
            "accessed_on": to_iso(link.accessed_on),
            "clicks": clicks.clicks,
        }

    def _short_url(self, link: AnyRow) -> str:
        return short_url(self.base_url(link.domain_id), link.path, link.code)


def serialize_send(send: StoredSend) -> dict[str, Any]:
    """Return the API fields of a message that a gateway sends. `attempt_log` contains its newest attempts. The oldest of them is
    first."""
    return {**send_fields(send.row), "attempt_log": [send_attempt_fields(attempt) for attempt in send.attempts]}


def serialize_xoxzo_time(at: datetime | None) -> str | None:
    """Return a time as YYYY-MM-DD HH:MM:SS in UTC."""
    return None if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
