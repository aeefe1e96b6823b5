"""This module tests a gateway with one message that is handed on at once, without the queue.

The recipient whose number the caller enters really receives the message. The message is not stored and costs nothing. It changes
neither the circuit breaker nor the rate of the gateway. The recipient's number is masked in the error text of the gateway.

A number on the opt-out list of the application that owns the gateway gets no message. For a gateway of the whole installation, the
number must not be on the list of any application.
"""
# Tested by tests/web/test_gateways.py

from __future__ import annotations

import dataclasses

from shortener.accounts.audit import AuditWriter
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.gateways.gateway import StoredGateway
from shortener.gateways.kinds import KINDS
from shortener.gateways.submission import GatewayContext, OutgoingMessage, SubmitOutcome, SubmitResult
from shortener.ids import IdGenerator, encode
from shortener.logs import mask_in
from shortener.messages.opt_outs import find_refused_applications
from shortener.messages.phone_numbers import parse_number
from shortener.messages.segments import count_segments
from shortener.storage.database import Database

#: The time limit of a test message is the time limit of the gateway, but at most this number of seconds.
MAX_TEST_SECONDS = 15.0
TEST_TEXT = "Test of the gateway. Please ignore this message."


async def send_test_message(
    database: Database,
    audit: AuditWriter,
    gateway: StoredGateway,
    context: GatewayContext,
    ids: IdGenerator,
    *,
    phone: str,
    sender_id: str,
    text: str,
    timeout: float,
) -> SubmitResult:
    """Hand a test message on to a gateway within `timeout` seconds, at most MAX_TEST_SECONDS. Return the result. Raise
    PhoneNumberError if the phone number is not valid, or ApiError OPTED_OUT if the recipient has refused further messages.

    The audit row is stored before the message is handed on, so that it exists even if the process ends or the caller disconnects
    during the test."""
    number = parse_number(phone)
    subject, owner = f"gateway {gateway.config.id} {gateway.config.name}", gateway.application_id or None
    if refused := await database.read(find_refused_applications, number.e164, owner):
        reason = "has refused further messages of this application"
        description = None
        if owner is None:
            reason = f"has refused further messages of application {refused[0]}"
            description = f"The recipient {reason}, and every application may use the gateway."
        raise ApiError(ErrorCode.OPTED_OUT, description, [Detail("to", reason)])
    await database.write(
        audit.add, context.clock(), "gateway_tested", subject, application_id=owner, after={"to": number.e164, "sender": sender_id}
    )
    segments = count_segments(text)
    reference = encode(ids())
    message = OutgoingMessage(
        reference=reference,
        message_id=f"test-{reference}",
        phone=number.e164,
        text=text,
        sender_id=sender_id,
        encoding=segments.encoding,
        segments=segments.segments,
        report_url=f"{gateway.config.report_url}/{reference}",
    )
    connection = KINDS[gateway.config.kind].open(gateway.config, context)
    try:
        result = await connection.submit(message, min(timeout, MAX_TEST_SECONDS))
        return dataclasses.replace(result, detail=mask_in(result.detail, number.e164))
    except Exception as error:
        return SubmitResult(SubmitOutcome.RETRY, "internal_error", f"the test failed ({type(error).__name__})")
    finally:
        await connection.close()
