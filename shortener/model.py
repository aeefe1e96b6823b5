"""The enumerations of the service: message states, verdicts, topics, flags and delivery statuses. The module also contains the
decorator `record` for dataclasses. It imports no other module of the project. Times are aware and UTC; money is `Decimal`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Literal, TypeVar, dataclass_transform, get_args

T = TypeVar("T")

ALL_APPLICATIONS = 0  # A row with this application id in the database applies to all applications.


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make a dataclass with slots whose objects must not change. mypy rejects changes of its fields. At run time, changes are not
    prevented, because the constructor of a frozen dataclass takes more than twice as long."""
    return _with_shared_methods(cls, is_hashable=True)


@dataclass_transform(field_specifiers=(field,))
def mutable_record(cls: type[T]) -> type[T]:
    """Make a dataclass with slots whose fields may change. Its objects have no hash."""
    return _with_shared_methods(cls, is_hashable=False)


def _with_shared_methods(cls: type[T], *, is_hashable: bool) -> type[T]:
    """Make `cls` a dataclass, and let the module `dataclasses` generate no method except `__init__`. All classes share the code
    of the other methods, so Python does not compile them again for each class. Compiling them would take a tenth of the start
    time of the service."""
    made = dataclass(slots=True, eq=False, repr=False)(cls)
    all_fields = fields(made)  # type: ignore[arg-type]  # mypy does not know the result of the decorator
    values_of = attrgetter(*(one.name for one in all_fields if one.compare))
    shown = [one.name for one in all_fields if one.repr]

    def __eq__(self: object, other: object) -> bool:
        return bool(values_of(self) == values_of(other)) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: object) -> int:
        return hash(values_of(self))

    def __repr__(self: object) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    methods: dict[str, object] = {"__eq__": __eq__, "__hash__": __hash__ if is_hashable else None, "__repr__": __repr__}
    for name, method in methods.items():
        if name not in vars(cls):  # a method that the class itself defines takes precedence
            setattr(made, name, method)
    return made


class State(enum.IntEnum):
    """The states of a message, in the order in which a message can reach them. Syniverse uses the same names.

    FAILED and EXPIRED have the same rank, which is between SENT and DELIVERED. A late DELIVERED or a click therefore replaces
    FAILED and EXPIRED, but a late FAILED does not replace DELIVERED.
    """

    CREATED = 0
    SENT = 10
    FAILED = 20
    EXPIRED = 21
    DELIVERED = 30
    READ = 40
    CLICKTHRU = 50

    def may_follow(self, current: State) -> bool:
        """Return whether this state replaces the state `current`."""
        return self // 10 > current // 10


class Verdict(enum.IntEnum):
    """The classification of a hit. Only a HUMAN hit is a click."""

    HUMAN = 0
    SUSPECTED = 1
    IGNORED = 2

    @property
    def api_name(self) -> str:
        """The name of this value in the API, in lower case."""
        return self.name.lower()


class Topic(enum.IntFlag):
    """The kinds of events. One row of the event log can have several topics."""

    STATE = 1
    CLICK = 2
    LATE_CLICK = 4
    CONVERSION = 8
    DELIVERY = 16
    CLICK_RETRACTED = 32
    TEST = 64
    OPERATIONS = 256  # The events tracker_disabled, delivery_dead and key_expiring.
    # A click event of a suspected hit also has this topic. Only trackers with `with_suspected` get such an event.
    SUSPECTED = 128

    @property
    def api_name(self) -> str:
        """The name of a single topic in the API."""
        assert self.name is not None
        return self.name.lower()


#: The events to which a tracker can subscribe. The API, the command line and the documents use these names.
EventName = Literal["state", "click", "late_click", "conversion", "delivery", "click_retracted", "operations"]
EVENT_NAMES: tuple[EventName, ...] = get_args(EventName)
SUBSCRIBABLE_TOPICS = tuple(Topic[name.upper()] for name in EVENT_NAMES)


class LinkFlag(enum.IntFlag):
    """Options of a link, stored as the bits of one number."""

    NONE = 0
    # Each click on the link creates an event. The flag is set when the link is created, because of `#trackurl`, an opt-out link, or
    # the application's setting `click_events: every`. A link without this flag follows the current setting.
    EVERY_CLICK = 1
    # The destination contains {click_id}, which the redirect replaces. The rewriter replaces all other placeholders.
    FILL_CLICK_ID = 2
    OPT_OUT = 8  # The recipient opts out with this link. A hit creates an event even if its verdict is "suspected".
    # When the link was created, the application had the setting `click_id_param`. Only the previous release reads this flag.
    APPEND_CLICK_ID = 4


class HitFlag(enum.IntFlag):
    """Properties of a hit, stored as the bits of one number."""

    NONE = 0
    FIRST_FOR_LINK = 1
    FIRST_FOR_MESSAGE = 2
    LATE = 4  # The link had expired at the time of the hit.
    RETRACTED = 8  # The hit was the first click until its verdict was changed.
    # At the time of the hit, the link, its domain or its application was disabled, or the host of its destination was blocked.
    DISABLED = 16
    CONFIRMATION_PAGE = 32  # The response was the confirmation page.


class DeliveryStatus(enum.IntEnum):
    """The status of a delivery. The dispatcher claims only rows with the status PENDING."""

    PENDING = 0
    DELIVERED = 1
    # All attempts have failed, or a response of the tracker forbids further attempts. The delivery stays in lists and can be
    # replayed.
    DEAD = 2
    # The status that the API shows for a PENDING delivery while its tracker or application is disabled. PARKED is never stored.
    PARKED = 3

    @property
    def api_name(self) -> str:
        """The name of this value in the API, in lower case."""
        return self.name.lower()


class SendStatus(enum.IntEnum):
    """The status of a message that is handed on to a gateway. The dispatcher of the gateways claims only rows with the status
    PENDING."""

    PENDING = 0
    SENT = 1  # The gateway has accepted the message.
    FAILED = 2  # The gateway has rejected the message, all attempts have failed, or the message is too old.
    # It is unknown whether the gateway has accepted the message: the response is unclear, or the response is missing and the
    # policy of the gateway is to hold such messages.
    HELD = 3

    @property
    def api_name(self) -> str:
        """The name of this value in the API, in lower case."""
        return self.name.lower()


def utcnow() -> datetime:
    """Return the current time. Functions receive a clock or a time, so that tests can pass their own."""
    return datetime.now(UTC)


Clock = Callable[[], datetime]
