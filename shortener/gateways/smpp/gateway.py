"""This module connects the process to an SMPP gateway: it hands messages on, and records receipts and replies.

The rules for responses (`submit_sm_resp`):

- ESME_ROK accepts a part. The message is accepted when all its parts are accepted.
- ESME_RTHROTTLED and ESME_RMSGQFUL mean that the gateway accepts messages later. The rate of the gateway is lowered, and the
  attempt does not count as a failure.
- ESME_RSYSERR, ESME_RX_T_APPN, ESME_RINVBNDSTS and the setting `retry_statuses` are temporary. Any other status rejects the
  message.
- If a response is missing because of a timeout or a lost connection, the message is doubtful: the gateway may have accepted it.

The parts of a message are sent one after the other. The connection stores in memory which parts the gateway has accepted. A later
attempt in the same process therefore sends only the other parts. A response that arrives after the attempt has ended is recorded as
a report, so the message is not handed on again. The receipt is requested for the last part only, and counts for the whole message.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

import structlog

from shortener.delivery.guard import Guard
from shortener.gateways.early_reports import MessageNotKnownYet
from shortener.gateways.smpp import pdus
from shortener.gateways.smpp.connection import NotConnected, SmppConnection
from shortener.gateways.smpp.encoding import EncodedText, decode_received, encode_parts
from shortener.gateways.smpp.pdus import ReceivedPdu
from shortener.gateways.smpp.receipts import is_receipt, message_bytes, parse_receipt, response_id
from shortener.gateways.smpp.session import SessionLost, SmppSession
from shortener.gateways.smpp.settings import SmppSettings, parse_status
from shortener.gateways.submission import (
    GatewayConfig,
    GatewayContext,
    GatewayReport,
    OutgoingMessage,
    SubmitOutcome,
    SubmitResult,
)
from shortener.model import mutable_record

log = structlog.get_logger(__name__)

THROTTLED_STATUSES = frozenset({pdus.THROTTLED, pdus.QUEUE_FULL})
TEMPORARY_STATUSES = frozenset({pdus.SYSTEM_ERROR, pdus.TEMPORARY_APP_ERROR, 0x04})
THROTTLE_PAUSE_SECONDS = 1.0
#: The connection remembers the accepted parts of at most this many messages whose attempt got no response.
MAX_REMEMBERED = 10_000
MAX_SENDER_CHARACTERS = 20
_SHORT_CODE_DIGITS = 8


@mutable_record
class _Progress:
    """The parts of a message, and the ids that the gateway assigned to the parts that it accepted."""

    encoded: EncodedText
    ids: list[str | None]

    @property
    def accepted(self) -> int:
        return sum(one is not None for one in self.ids)

    @property
    def is_complete(self) -> bool:
        return self.accepted == len(self.ids)


class SmppGateway:
    """A gateway connection that sends messages to an SMPP gateway."""

    def __init__(self, config: GatewayConfig, context: GatewayContext) -> None:
        assert isinstance(config.settings, SmppSettings)
        self._config = config
        self._settings = config.settings
        self._context = context
        guard = Guard(allow_private=True) if config.allow_private else context.public_guard
        # If there is no recorder of replies, this process only tests the gateway. It must then not receive the delivery reports of
        # other messages.
        self._connection = SmppConnection(config.name, config.settings, guard, self._receive, receives=context.reply is not None)
        self._temporary = TEMPORARY_STATUSES | {parse_status(text) for text in config.settings.retry_statuses}
        self._progress: OrderedDict[str, _Progress] = OrderedDict()
        self._reports: set[asyncio.Task[None]] = set()

    def keep_open(self) -> None:
        """Open the session in the background, because receipts and replies arrive only on an open session."""
        self._connection.keep_open()

    @property
    def is_up(self) -> bool:
        """Whether the process has an open session with the gateway."""
        return self._connection.is_up

    async def submit(self, message: OutgoingMessage, timeout: float) -> SubmitResult:
        """Send the parts of a message that the gateway has not accepted yet."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        if not message.sender_id.isascii() or len(message.sender_id) > MAX_SENDER_CHARACTERS:
            return SubmitResult(SubmitOutcome.REJECTED, "invalid_sender", "a sender must have at most 20 ASCII characters")
        progress = self._progress.pop(message.reference, None)
        if progress is None:
            try:
                encoded = encode_parts(message.text, message.reference)
            except ValueError as error:
                return SubmitResult(SubmitOutcome.REJECTED, "too_long", str(error))
            progress = _Progress(encoded, [None] * len(encoded.parts))
        self._remember(message.reference, progress)
        result = await self._submit_parts(message, progress, started + timeout)
        if result.outcome in (SubmitOutcome.ACCEPTED, SubmitOutcome.REJECTED):
            self._progress.pop(message.reference, None)
        return result

    async def close(self) -> None:
        """End the SMPP session of the connection."""
        await self._connection.close()
        if self._reports:
            await asyncio.wait(self._reports, timeout=1.0)

    def _remember(self, reference: str, progress: _Progress) -> None:
        self._progress[reference] = progress
        while len(self._progress) > MAX_REMEMBERED:
            self._progress.popitem(last=False)

    async def _submit_parts(self, message: OutgoingMessage, progress: _Progress, deadline: float) -> SubmitResult:
        loop = asyncio.get_running_loop()
        pause = THROTTLE_PAUSE_SECONDS / 4
        while not progress.is_complete:
            index = progress.ids.index(None)
            left = deadline - loop.time()
            try:
                session = await self._connection.session(max(left, 0.001))
                response = await self._submit_part(session, message, progress, index, deadline - loop.time())
            except NotConnected as error:
                return self._not_sent(progress, error.reason, str(error), error.status)
            except SessionLost as error:
                if not error.was_sent:
                    return self._not_sent(progress, "not_sent", str(error))
                return SubmitResult(SubmitOutcome.DOUBT, "connection_lost", str(error))
            except TimeoutError:
                return SubmitResult(SubmitOutcome.DOUBT, "timeout", "the gateway did not respond in time")
            status = response.status
            if status == pdus.OK:
                progress.ids[index] = response_id(response.message_id, self._settings.message_ids)
                continue
            if status in THROTTLED_STATUSES and progress.accepted and deadline - loop.time() > 2 * pause:
                await asyncio.sleep(pause)  # the pause is short, because a phone shows the message only when it has all parts
                pause = min(pause * 2, 2.0)
                continue
            return self._refused(progress, index, status)
        return SubmitResult(SubmitOutcome.ACCEPTED, "accepted", gateway_message_id=progress.ids[-1] or None, status=0)

    async def _submit_part(
        self, session: SmppSession, message: OutgoingMessage, progress: _Progress, index: int, timeout: float
    ) -> ReceivedPdu:
        encoded, settings = progress.encoded, self._settings
        is_last = index == len(encoded.parts) - 1

        def record_late(response: ReceivedPdu) -> None:
            self._record_late(message.reference, progress, index, response)

        try:
            return await session.submit(
                timeout,
                record_late,
                service_type=settings.service_type,
                **_source(message.sender_id, settings),
                dest_addr_ton=settings.dest_ton,
                dest_addr_npi=settings.dest_npi,
                destination_addr=message.phone.removeprefix("+"),
                esm_class=pdus.UDH_FLAG if encoded.has_headers else 0,
                registered_delivery=int(settings.receipts and is_last),
                data_coding=encoded.data_coding,
                short_message=encoded.parts[index],
            )
        except TimeoutError:
            task = asyncio.create_task(session.check())  # after a timeout, check whether the gateway responds at all
            self._reports.add(task)
            task.add_done_callback(self._reports.discard)
            raise

    def _record_late(self, reference: str, progress: _Progress, index: int, response: ReceivedPdu) -> None:
        """Record a response that arrived after its attempt has ended. An accepted message is reported as sent."""
        if response.status != pdus.OK or progress.ids[index] is not None:
            return
        progress.ids[index] = response_id(response.message_id, self._settings.message_ids)
        if progress.is_complete:
            report = GatewayReport("SENT", reference=reference, gateway_message_id=progress.ids[-1] or None)
            task = asyncio.create_task(self._report_late(report))
            self._reports.add(task)
            task.add_done_callback(self._reports.discard)

    async def _report_late(self, report: GatewayReport) -> None:
        try:
            await self._context.report(self._config.id, report)
        except Exception:
            log.warning("late_response_not_recorded", gateway=self._config.name, send=report.reference)

    def _not_sent(self, progress: _Progress, reason: str, detail: str, status: int | None = None) -> SubmitResult:
        """Return the result of an attempt in which a part of the message was certainly not sent. The message is doubtful if other
        parts were accepted."""
        return SubmitResult(_retry(progress), reason, detail, status=status)

    def _refused(self, progress: _Progress, index: int, status: int) -> SubmitResult:
        """Return the result of an attempt whose response has an error status."""
        detail = f"{pdus.status_name(status)}: {pdus.status_text(status)}"
        if len(progress.ids) > 1:
            detail = f"part {index + 1} of {len(progress.ids)}: {detail}"
        if status in THROTTLED_STATUSES:
            pause = THROTTLE_PAUSE_SECONDS
            return SubmitResult(_retry(progress), "throttled", detail, status=status, retry_after=pause, is_throttled=True)
        if status in self._temporary:
            return SubmitResult(_retry(progress), "gateway_error", detail, status=status)
        return SubmitResult(SubmitOutcome.REJECTED, "rejected", detail, error_code=pdus.status_name(status), status=status)

    async def _receive(self, pdu: ReceivedPdu) -> int:
        """Record a receipt or a reply that the gateway sent. Return the command status of the response to it. The status is a
        temporary error if the gateway must send the receipt or the reply again."""
        try:
            if is_receipt(pdu):
                report = parse_receipt(pdu, self._settings.message_ids)
                if report is None:
                    log.warning("smpp_receipt_unreadable", gateway=self._config.name)
                    if self._context.count_unreadable is not None:
                        self._context.count_unreadable(self._config.id)
                elif not await self._context.report(self._config.id, report):
                    log.warning("smpp_receipt_unknown", gateway=self._config.name, id=report.gateway_message_id, word=report.word)
            elif self._context.reply is not None:
                received = decode_received(message_bytes(pdu), pdu.data_coding, bool(pdu.esm_class & pdus.UDH_FLAG))
                if received.part == 1:  # only the first part of a long reply is recorded, because it contains the keyword
                    await self._context.reply(self._config.id, pdu.source, received.text)
        except MessageNotKnownYet:
            return pdus.TEMPORARY_APP_ERROR
        except Exception as error:
            log.warning("smpp_delivery_not_stored", gateway=self._config.name, error=type(error).__name__)
            return pdus.TEMPORARY_APP_ERROR
        return pdus.OK


def _retry(progress: _Progress) -> SubmitOutcome:
    return SubmitOutcome.DOUBT if progress.accepted else SubmitOutcome.RETRY


def _source(sender: str, settings: SmppSettings) -> dict[str, Any]:
    """Return the source fields of a PDU for a sender, which is a number, a short code or a name."""
    number = sender.removeprefix("+")
    is_number = number.isdecimal()
    if not sender:
        ton, npi = 0, 0
    elif not is_number:
        number, ton, npi = sender, 5, 0
    elif len(number) <= _SHORT_CODE_DIGITS and not sender.startswith("+"):
        ton, npi = 3, 1
    else:
        ton, npi = 1, 1
    return {
        "source_addr_ton": ton if settings.source_ton is None else settings.source_ton,
        "source_addr_npi": npi if settings.source_npi is None else settings.source_npi,
        "source_addr": number,
    }
