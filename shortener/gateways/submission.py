"""The interface between the dispatcher that hands messages on and the kinds of gateways.

A kind of gateway (http.py, smpp/kind.py, simulator.py) is a module with one `GatewayKind`: a model of its settings, and a function
that opens a `GatewayConnection`. The dispatcher passes each message to `GatewayConnection.submit` and acts on the outcome of the
result. The dispatcher contains no code for protocols.
"""
# Tested by tests/gateways/test_dispatcher.py

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from shortener.delivery.guard import Guard
from shortener.delivery.sender import Sender
from shortener.model import Clock, record


class SubmitOutcome(enum.Enum):
    """The outcome of an attempt to hand a message on to a gateway."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"  # The gateway rejected this message, and would reject every repetition. The message becomes FAILED.
    RETRY = "retry"  # The gateway has certainly not accepted the message. It is attempted again on the schedule.
    # The response is missing, so the gateway may have accepted the message. The policy of the gateway decides whether the message
    # is handed on again.
    DOUBT = "doubt"
    UNREADABLE = "unreadable"  # A response arrived, but it does not show whether the message was accepted. The message is held.


@record
class OutgoingMessage:
    """A message to hand on. `phone` is in E.164.

    `reference` identifies the message in the whole installation and is the same for all attempts. `report_url` is the URL for the
    gateway's delivery reports about this message."""

    reference: str
    message_id: str
    phone: str
    text: str
    sender_id: str
    encoding: str  # the encoding of the text: GSM-7 or UCS-2
    segments: int
    report_url: str


@record
class SubmitResult:
    """The result of one attempt to hand on a message.

    `reason` is a short name of the result, such as `accepted` or `rate_limited`. `detail` is the error text of the gateway, or a
    text that explains the failure. `error_code` is the code of the gateway. `status` is the HTTP status or the command status of
    SMPP. `retry_after` is the pause in seconds that the gateway requests. If `is_local` is true, this host failed, so the attempt
    does not count. If `is_throttled` is true, the gateway rejected the message because it accepts fewer messages per second. If
    `is_repeated` is true, the attempt sent the message twice, because an idle connection ended before a response."""

    outcome: SubmitOutcome
    reason: str
    detail: str = ""
    gateway_message_id: str | None = None
    error_code: str = ""
    status: int | None = None
    retry_after: float | None = None
    is_local: bool = False
    is_throttled: bool = False
    is_repeated: bool = False
    milliseconds: int = 0


@record
class GatewayReport:
    """A delivery report of a gateway. One of `reference`, `gateway_message_id` and `message_id` identifies the message.

    `word` is the gateway's word for the state, such as DELIVRD. `at` is None if the report has no time. `addresses` are the phone
    numbers in the report, with or without the country code. If the report contains phone numbers and none of them is the
    recipient of the message, it counts as a report about an unknown message."""

    word: str
    reference: str | None = None
    gateway_message_id: str | None = None
    message_id: str | None = None
    at: datetime | None = None
    error_code: str | None = None
    description: str | None = None
    price: str | None = None
    addresses: tuple[str, ...] = ()


#: A function that records a delivery report of a gateway: (id of the gateway, report). It returns whether the message is known.
ReportSink = Callable[[int, GatewayReport], Awaitable[bool]]
#: A function that counts a report which a connection cannot read: (id of the gateway).
UnreadableReportSink = Callable[[int], None]
#: A function that records a reply which a gateway received: (id of the gateway, phone number of the sender, text).
ReplySink = Callable[[int, str, str], Awaitable[None]]


@record
class GatewayConfig:
    """A stored gateway as the dispatcher uses it. `settings` are the validated settings of its kind."""

    id: int
    name: str
    kind: str
    revision: int
    settings: BaseModel
    report_url: str  # The URL for delivery reports, with the report key and without a reference.
    allow_private: bool = False
    repeats_doubtful: bool = True  # Whether a message is handed on to the gateway again if the response is missing.


@record
class GatewayContext:
    """The objects that the connections of all gateways share.

    `public_sender` sends requests to public IP addresses only, and `private_sender` also to private ones. `public_guard` checks the
    IP addresses of other connections. `reply` and `count_unreadable` are None in a process that only tests gateways."""

    public_sender: Sender
    private_sender: Sender
    report: ReportSink
    clock: Clock
    reply: ReplySink | None = None
    public_guard: Guard = field(default_factory=Guard)
    count_unreadable: UnreadableReportSink | None = None


class GatewayConnection(Protocol):
    """The connection of this process to one gateway. Several `submit` calls run at the same time."""

    async def submit(self, message: OutgoingMessage, timeout: float) -> SubmitResult:
        """Hand on a message within `timeout` seconds. Return the result. The method raises no error except CancelledError."""
        ...

    async def close(self) -> None:
        """Close the connection. Call it only when no `submit` call is running."""
        ...


@runtime_checkable
class ListeningConnection(GatewayConnection, Protocol):
    """A connection on which the gateway also sends reports and replies, so it must be open all the time."""

    def keep_open(self) -> None:
        """Connect in the background if the connection is not open. Return at once."""
        ...

    @property
    def is_up(self) -> bool:
        """Whether the connection is open now."""
        ...


class GatewayKind(Protocol):
    """A kind of gateway, such as `http`: its settings, and how a connection is opened."""

    @property
    def name(self) -> str: ...

    @property
    def settings_model(self) -> type[BaseModel]:
        """The model that validates the settings of a gateway of this kind."""
        ...

    def describe(self, settings: BaseModel) -> Mapping[str, Any]:
        """Return the settings for display, without credentials."""
        ...

    def target(self, settings: BaseModel) -> tuple[str, int] | None:
        """Return the host and the port to which the process connects for this gateway; None if it makes no connection."""
        ...

    def operator_values(self, settings: BaseModel) -> Mapping[str, object]:
        """Return the values that only the operator can change if the gateway may have a private address, by the name of the
        setting.

        These values decide which resource of which host is requested, and which part of the response is shown."""
        ...

    def open(self, config: GatewayConfig, context: GatewayContext) -> GatewayConnection: ...
