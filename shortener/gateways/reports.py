"""This module records the delivery reports of gateways: it finds the message, and translates the gateway's word for the state.

A report can arrive before the response to the message is recorded. Therefore, if the id in a report is unknown, the service
searches for the message again for a short time (REPORT_WAIT). If the message is still unknown, the gateway must repeat the report
while the id may become known (early_reports.py). A report about a doubtful message proves that the gateway has accepted the
message. Therefore the message is not handed on again, and it is no longer held. The report SENT, DELIVERED or READ proves the same
about a message whose attempts have all failed: for example, the gateway responded with 500 and sent the message nevertheless. Such
a message becomes doubtful.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Connection, exists, select, update

from shortener.delivery.attempt import to_storable_text
from shortener.gateways.attempt import MAX_GATEWAY_ID_LENGTH
from shortener.gateways.early_reports import EarlyReports, MessageNotKnownYet
from shortener.gateways.finishing import reported_status
from shortener.gateways.report_calls import ReportCall
from shortener.gateways.submission import GatewayReport
from shortener.gateways.unrecorded_reports import LossReason, UnrecordedReports
from shortener.ids import decode
from shortener.messages.delivery_reports import DeliveryReport, DeliveryReports
from shortener.messages.prices import MAX_PRICE
from shortener.messages.report_wait import ReportWait
from shortener.messages.report_words import parse_state
from shortener.metrics import Metrics
from shortener.model import Clock, SendStatus, State
from shortener.storage.database import Database
from shortener.storage.schema import messages, sends
from shortener.storage.send_conditions import UNFINISHED

log = structlog.get_logger(__name__)

MAX_WAITING = 256  # the maximum number of calls that wait for unknown messages at the same time
MAX_WORD_LENGTH = 64
MIN_NATIONAL_DIGITS = 6  # the minimum number of digits of a phone number without its country code
MAX_PRICE_DECIMALS = 20  # the maximum number of digits after the decimal point of a price


class ReportedSend(NamedTuple):
    """The message that a report is about. `status` is the status of its row in `sends`.

    `gateway_message_id` is the id that the gateway assigned to it, or None if no response with an id was recorded."""

    id: int
    application_id: int
    message_id: str
    status: int
    gateway_message_id: str | None


class GatewayReports:
    """A recorder of delivery reports from gateways."""

    def __init__(self, database: Database, reports: DeliveryReports, clock: Clock, *, timeout: float, wait: float = 0) -> None:
        self._database = database
        self._reports = reports
        self._clock = clock
        self._wait = ReportWait(wait, MAX_WAITING)
        self.unrecorded = UnrecordedReports(clock)
        self._early = EarlyReports(database, clock, self._count_unknown, timeout)

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metric of reports that were not recorded."""
        self.unrecorded.register_metrics(metrics, before_reading=self._early.forget_old)

    def _count_unknown(self, gateway_id: int) -> None:
        self.unrecorded.count_and_log(gateway_id, LossReason.UNKNOWN_MESSAGE)

    async def receive(self, gateway_id: int, report: GatewayReport) -> bool:
        """Record a report that arrived on a connection of this process. Return False, and count the report, if its message or its
        word for the state is unknown. The caller logs it. Raise MessageNotKnownYet if the gateway must repeat the report. Raise
        StoreUnavailable if the database is unavailable."""
        [found] = await self._find(gateway_id, [report])
        await self._check_unknown(gateway_id, [report], [found])
        loss = await self._record(gateway_id, report, found, {})
        if loss is not None:
            self.unrecorded.count(gateway_id, loss)
        return loss is None

    def count_unreadable(self, gateway_id: int) -> None:
        """Count a receipt that arrived on a connection of this process and cannot be read. The caller logs it."""
        self.unrecorded.count(gateway_id, LossReason.UNREADABLE_RECEIPT)

    async def receive_all(self, gateway_id: int, call: ReportCall, states: Mapping[str, str]) -> None:
        """Record the reports of one call of a gateway in their order. Count and log the reports that cannot be recorded. `states`
        maps the gateway's own words to states.

        Raise MessageNotKnownYet if the gateway must repeat the call because the message of a report may become known. Raise
        StoreUnavailable if the database is unavailable. After both errors, some reports may be stored, and nothing is counted,
        because the gateway repeats the call."""
        losses = Counter(call.unreadable)
        found = await self._find(gateway_id, call.reports)
        for report, one in zip(call.reports, found, strict=True):
            loss = await self._record(gateway_id, report, one, states)
            if loss is not None:
                losses[loss] += 1
        await self._check_unknown(gateway_id, call.reports, found)
        for reason, number in losses.items():
            if reason is LossReason.UNKNOWN_WORD:  # `_record` has already logged these reports with their words
                self.unrecorded.count(gateway_id, reason, number)
            else:
                self.unrecorded.count_and_log(gateway_id, reason, number)

    async def _check_unknown(self, gateway_id: int, reports: Sequence[GatewayReport], found: Sequence[ReportedSend | None]) -> None:
        """Raise MessageNotKnownYet if the gateway must repeat one of the reports, because its message may become known. `found`
        contains the message of each report; None if it is unknown."""
        unknown = []
        for report, one in zip(reports, found, strict=True):
            if one is None:
                unknown.append(report)
            else:
                self._early.found(gateway_id, report)
        if unknown and await self._early.must_repeat(gateway_id, unknown):
            raise MessageNotKnownYet
        for report in unknown:
            self._early.counted(gateway_id, report)

    async def _record(
        self, gateway_id: int, report: GatewayReport, found: ReportedSend | None, states: Mapping[str, str]
    ) -> LossReason | None:
        """Record a report about a message. Return None, or the reason why it cannot be recorded."""
        if found is None:
            return LossReason.UNKNOWN_MESSAGE
        try:
            state = _state_of(report.word, states)
        except ValueError:
            log.warning("gateway_report_unreadable", gateway=gateway_id, word=report.word[:MAX_WORD_LENGTH])
            return LossReason.UNKNOWN_WORD
        delivery_report = DeliveryReport(
            message_id=found.message_id,
            state=state,
            at=report.at or self._clock(),
            report_status=to_storable_text(report.word, MAX_WORD_LENGTH),
            reason_code=to_storable_text(report.error_code, MAX_WORD_LENGTH) if report.error_code else None,
            reason_description=to_storable_text(report.description, 255) if report.description else None,
            telecom_message_id=to_storable_text(report.gateway_message_id, MAX_GATEWAY_ID_LENGTH)
            if report.gateway_message_id
            else None,
            mt_price=_price(report.price),
        )
        if report.reference and delivery_report.telecom_message_id and found.gateway_message_id is None:
            await self._database.write(_store_id, found.id, delivery_report.telecom_message_id)
        results = await self._reports.record(found.application_id, [delivery_report])
        if found.status in UNFINISHED and state is not None:
            await self._database.write(_settle, found.id, state, self._clock())
        return LossReason.UNKNOWN_MESSAGE if results[0] is None else None

    async def _find(self, gateway_id: int, reports: Sequence[GatewayReport]) -> list[ReportedSend | None]:
        """Return the message of each report; None if it is unknown. The function searches for unknown messages several times, for
        at most REPORT_WAIT in total."""

        async def find(indexes: Iterable[int]) -> list[ReportedSend | None]:
            return [await self._database.read(find_send, gateway_id, reports[index]) for index in indexes]

        return await self._wait.retry_unknown(await find(range(len(reports))), find)


def find_send(connection: Connection, gateway_id: int, report: GatewayReport) -> ReportedSend | None:
    """Return the message of a gateway that a report is about; None if the message is unknown.

    A `message_id` is unique in one application only. If several applications use the gateway, several messages may have the same
    id. Then the message is unknown."""
    row_id = decode(report.reference) if report.reference else None
    if row_id is not None:
        condition = sends.c.id == row_id
    elif report.gateway_message_id:
        condition = sends.c.gateway_message_id == to_storable_text(report.gateway_message_id, MAX_GATEWAY_ID_LENGTH)
    elif report.message_id:
        condition = messages.c.message_id == to_storable_text(report.message_id)
    else:
        return None
    statement = (
        select(
            sends.c.id,
            sends.c.application_id,
            messages.c.message_id,
            sends.c.status,
            sends.c.gateway_message_id,
            messages.c.to_address,
        )
        .join_from(sends, messages, messages.c.id == sends.c.id)
        .where(condition, sends.c.gateway_id == gateway_id)
        .order_by(sends.c.id.desc())
        .limit(2)
    )
    rows = connection.execute(statement).all()
    is_ambiguous = len(rows) > 1 and row_id is None and not report.gateway_message_id
    if not rows or is_ambiguous or (report.addresses and not _is_recipient(rows[0].to_address, report.addresses)):
        return None
    return ReportedSend(*rows[0][:5])


def _is_recipient(phone: str, addresses: Iterable[str]) -> bool:
    """Return whether one of the addresses is the phone number `phone`, which is in E.164. An address may lack the country code."""
    digits = (re.sub(r"\D", "", address).lstrip("0") for address in addresses)
    return any(len(one) >= MIN_NATIONAL_DIGITS and phone.endswith(one) for one in digits)


def _store_id(connection: Connection, send_id: int, gateway_message_id: str) -> None:
    """Store the id that the gateway assigned to a message whose response is missing, so that later reports find the message. Store
    nothing if the personal data of the message was erased."""
    is_erased = exists().where(messages.c.id == send_id, messages.c.to_address == "")
    missing = sends.c.id == send_id, sends.c.gateway_message_id.is_(None), ~is_erased
    connection.execute(update(sends).where(*missing).values(gateway_message_id=gateway_message_id))


def _settle(connection: Connection, send_id: int, state: State, now: datetime) -> None:
    """Apply a report to its message. If the message is held, finish it. If the message is pending, was handed on, and was accepted
    according to the report, make it doubtful. The dispatcher then finishes it.

    The row is locked before its status is read. If another transaction records the attempt at the same time, there are two cases:
    either this function finds that the message is held, or the other transaction finds the report (finishing.py)."""
    found = select(sends.c.status, sends.c.attempt).where(sends.c.id == send_id).with_for_update()
    row, reported = connection.execute(found).first(), reported_status(state)
    values: dict[str, Any] = {}
    if row is not None and row.status == SendStatus.HELD:
        values = {"status": int(reported or row.status), "text": None, "finished_at": now}
    elif row is not None and row.status == SendStatus.PENDING and row.attempt and reported is SendStatus.SENT:
        values = {"doubtful": True}
    if values:
        connection.execute(update(sends).where(sends.c.id == send_id).values(values))


def _state_of(word: str, states: Mapping[str, str]) -> State | None:
    """Return the message state for a gateway's word; None if the word is known but means no state. Raise ValueError for an unknown
    word."""
    own = states.get(word)
    if own is not None:
        return None if own == "-" else State[own]
    return parse_state(word)[0]


def _price(text: str | None) -> Decimal | None:
    """Return a price with at most MAX_PRICE_DECIMALS digits after the decimal point. Return None if the text is not a price below
    MAX_PRICE. The price is rounded before it is stored, because a short text such as 1e-900000000 means a decimal of many million
    digits."""
    try:
        price = Decimal(text) if text else None
        if price is None or not price.is_finite() or not 0 <= price < MAX_PRICE:
            return None
        exponent = price.as_tuple().exponent
        assert isinstance(exponent, int)  # the price is finite
        return price if -MAX_PRICE_DECIMALS <= exponent <= 0 else round(price, MAX_PRICE_DECIMALS if exponent < 0 else 0)
    except ArithmeticError:
        return None
