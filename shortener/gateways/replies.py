"""This module records the replies of recipients, which arrive at the API or on the connection of a gateway.

A stop word puts the number on the opt-out list of the application, and START removes it. Each reply also counts as a conversion of
the latest message to the number (Syniverse: "Replying to a message can also be a conversion event"), with the action `reply`. The
text of a reply is not stored.

A reply on the connection of a gateway belongs to the application that owns the gateway. If the gateway belongs to the installation,
the reply belongs to the application that sent the latest message to the number through this gateway.
"""
# Tested by tests/web/test_inbound.py and tests/gateways/test_replies.py

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Literal
from weakref import WeakValueDictionary

import structlog
from sqlalchemy import Connection, select

from shortener.accounts.gateway_entries import GatewayEntry
from shortener.conversions.parsing import ConversionReport
from shortener.conversions.service import Conversions
from shortener.errors import ApiError
from shortener.ids import first_id_at
from shortener.messages.inbound import REPLY_WINDOW, record_reply
from shortener.metrics import Metrics
from shortener.model import ALL_APPLICATIONS, Clock, record
from shortener.storage.database import Database
from shortener.storage.schema import messages, sends
from shortener.storage.types import to_ms
from shortener.times import is_reported_time

log = structlog.get_logger(__name__)

REPLY_ACTION = "reply"


@record
class RecordedReply:
    """The result of recording a reply. `message_id` and `conversion_id` are None if no message was sent to the number."""

    keyword: Literal["stop", "start"] | None
    is_opted_out: bool
    message_id: str | None
    conversion_id: str | None
    is_duplicate: bool


class Replies:
    """A recorder of recipients' replies."""

    def __init__(self, database: Database, conversions: Conversions, clock: Clock) -> None:
        self._database = database
        self._conversions = conversions
        self._clock = clock
        # The number of replies that were not recorded: they belong to no application or have no valid phone number.
        self.unknown = 0
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metric of replies that were not recorded."""
        metrics.counter(
            "shortener_gateway_replies_unknown",
            "Replies from gateways that were not recorded: they belong to no application, or their sender is not a phone number.",
            lambda: self.unknown,
        )

    async def record(
        self, application_id: int, phone: str, text: str, *, reply_id: str = "", at: datetime | None = None
    ) -> RecordedReply:
        """Record a reply from a phone number in E.164. A reply with the same `reply_id` as an earlier one is not recorded again. If
        `reply_id` is "", only one reply to a message is recorded. `at` is the reported time of the reply. If `at` is None, before
        the year 2000 or more than 24 hours in the future, the reply gets the current time. It is not rejected, because it may
        contain STOP.

        Raise ApiError (conversions/service.py) or StoreUnavailable."""
        now = self._clock()
        if at is None or not is_reported_time(at, now):
            at = now
        reply = await self._database.write(record_reply, application_id, phone, text, now)
        result = None
        if reply.message_id is not None:
            report = ConversionReport(
                at=at,
                message_id=reply.message_id,
                action=REPLY_ACTION,
                transaction_id=reply_id,
                disposition={"stop": "negative", "start": "positive"}.get(reply.keyword or ""),
            )
            result = await self._conversions.ingest(application_id, report)
        return RecordedReply(
            reply.keyword,
            reply.is_opted_out,
            reply.message_id,
            result.conversion_id if result is not None else None,
            result is not None and result.duplicate,
        )

    async def receive(self, gateways: Mapping[int, GatewayEntry], gateway_id: int, phone: str, text: str) -> None:
        """Record a reply that arrived on the connection of a gateway. `gateways` contains all gateways by id. Raise
        StoreUnavailable if the database is unavailable.

        The replies of a phone are recorded in the order of the calls, so that a STOP is not recorded after a later START."""
        # A lock for each phone number. Replies that wait for a lock get it in their order of arrival. A lock is removed when no
        # reply uses it.
        turn = self._turns.setdefault(phone.removeprefix("+"), asyncio.Lock())
        async with turn:
            await self._receive(gateways.get(gateway_id), gateway_id, phone, text)

    async def _receive(self, gateway: GatewayEntry | None, gateway_id: int, phone: str, text: str) -> None:
        number = await asyncio.to_thread(_e164, phone)  # in a thread, because the first call imports the tables of all countries
        application_id = ALL_APPLICATIONS
        if gateway is not None and number:
            application_id = gateway.application_id
            if application_id == ALL_APPLICATIONS:
                since = first_id_at(to_ms(self._clock() - REPLY_WINDOW))
                application_id = await self._database.read(_latest_sender, gateway_id, number, since)
        if application_id == ALL_APPLICATIONS:
            self.unknown += 1
            log.warning("reply_without_application", gateway=gateway_id)
            return
        try:
            await self.record(application_id, number, text)
        except ApiError as error:
            log.warning("reply_not_counted", gateway=gateway_id, application=application_id, error=error.code.name)


def _e164(phone: str) -> str:
    """Return the phone number that a gateway has sent, in E.164. Return "" if the text is not a phone number."""
    from shortener.messages.phone_numbers import PhoneNumberError, parse_number

    try:
        return parse_number(phone if phone.startswith("+") else f"+{phone}").e164
    except PhoneNumberError:
        return ""


def _latest_sender(connection: Connection, gateway_id: int, phone: str, since: int) -> int:
    """Return the application that sent the latest message to a number through a gateway; ALL_APPLICATIONS if there is none."""
    statement = (
        select(sends.c.application_id)
        .join_from(messages, sends, sends.c.id == messages.c.id)
        .where(messages.c.to_address == phone, messages.c.id >= since, sends.c.gateway_id == gateway_id)
        .order_by(messages.c.id.desc())
        .limit(1)
    )
    found: int | None = connection.execute(statement).scalar()
    return ALL_APPLICATIONS if found is None else found
