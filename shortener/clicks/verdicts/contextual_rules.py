"""The contextual rules classify a hit by its time and by other hits, not by its request.

These rules detect scanners that send the user agent of an ordinary browser. Each rule is a setting of the application
(`accounts.settings`). All rules are off by default, because each rule also suspects hits of some people:

- `min_seconds_after_sent`: suspects a hit before SENT, or earlier than this time after SENT. Reason: carriers scan links during
  delivery. People who react within the limit are suspected too. If the clock of the sending system is fast, all hits are
  suspected.
- `min_seconds_after_delivered`: suspects a hit less than this time before or after DELIVERED. Reason: a phone may scan the link
  before the carrier records the time. A hit long before DELIVERED is not suspected, because carriers report late, and many report
  only the minute. The fastest readers are suspected too. A report after the click has an effect only when the hit is
  reclassified.
- `suspect_before_sent`: suspects a hit on a message that was never reported as SENT, DELIVERED or READ. If the sending system
  does not report at all, all hits are suspected. A later report causes a new classification of such hits (early_hits.py).
- `max_recipients_per_address_minute`: suspects an address that opens the links of many people within a minute. The limit must be
  high: carriers put thousands of phones behind one address, so a large campaign has hundreds of real clicks per minute from one
  address.
- `all_links_within_second`: suspects hits that open all links of a message at once. People who tap two links quickly, and phones
  that prefetch links, are suspected too.

The first hits of a scanner are not suspected, because no evidence exists yet. `reclassify` changes their verdicts later.

The rules are pure functions of a HitContext. Only RecentAddresses and RecentLinks have state. Their state is in the memory of
this process and has a maximum size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from datetime import datetime, timedelta

from shortener.accounts.settings import ApplicationSettings
from shortener.clicks.verdicts.request_rules import Classification
from shortener.model import Verdict, record

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
BEFORE_SENT = "before_sent"  # the name of the rule for hits on messages that were not reported as sent
MANY_RECIPIENTS = "many_recipients"  # the name of the rule for addresses that open the links of many people


@record
class HitContext:
    """The facts about a hit that the contextual rules use. A value that is unknown is None, 0 or empty, and matches no rule."""

    at: datetime
    sent_at: datetime | None = None
    delivered_at: datetime | None = None
    is_reported: bool = True  # false if no delivery report SENT, DELIVERED or READ has arrived for the message
    # number of recipients whose links the client's address opened within a minute, including the recipient of this hit
    recipients_of_address: int = 0
    links_of_message: int = 0
    # one time for each opened link of the message: the time of that hit on the link which is closest to the time `at`
    opened_at: Collection[datetime] = ()


def sent_at_before(at: datetime, sent_at: datetime | None) -> datetime | None:
    """Return `sent_at` if it is before the hit at the time `at`, otherwise None.

    A later `sent_at` is not the true time of SENT, because the message was sent before the hit. It can only be the time when the
    report arrived."""
    return sent_at if sent_at is not None and sent_at <= at else None


def classify_by_context(settings: ApplicationSettings, context: HitContext) -> Classification | None:
    """Return SUSPECTED with the first rule that matches. Return None if no rule matches; the hit then keeps the verdict of the
    request rules."""
    for name, rule in _RULES:
        if reason := rule(settings, context):
            return Classification(Verdict.SUSPECTED, name, reason)
    return None


def _soon_after_sent(settings: ApplicationSettings, context: HitContext) -> str | None:
    if settings.min_seconds_after_sent is None or context.sent_at is None:
        return None
    seconds = (context.at - context.sent_at).total_seconds()
    return _describe_distance(seconds, "sent") if seconds < settings.min_seconds_after_sent else None


def _soon_after_delivered(settings: ApplicationSettings, context: HitContext) -> str | None:
    if settings.min_seconds_after_delivered is None or context.delivered_at is None:
        return None
    seconds = (context.at - context.delivered_at).total_seconds()
    return _describe_distance(seconds, "delivered") if abs(seconds) < settings.min_seconds_after_delivered else None


def _describe_distance(seconds: float, event: str) -> str:
    return f"{abs(seconds):.1f} s {'before' if seconds < 0 else 'after'} the message was {event}"


def _before_sent(settings: ApplicationSettings, context: HitContext) -> str | None:
    return "the message was not reported as sent" if settings.suspect_before_sent and not context.is_reported else None


def _many_recipients(settings: ApplicationSettings, context: HitContext) -> str | None:
    limit = settings.max_recipients_per_address_minute
    if limit is None or context.recipients_of_address <= limit:
        return None
    return f"one address opened the links of {context.recipients_of_address} recipients within a minute"


def _all_links_at_once(settings: ApplicationSettings, context: HitContext) -> str | None:
    if not settings.all_links_within_second or context.links_of_message < 2 or len(context.opened_at) < context.links_of_message:
        return None
    is_within_second = max(context.opened_at) - min(context.opened_at) <= SECOND
    return f"all {context.links_of_message} links of the message were opened within a second" if is_within_second else None


_RULES: tuple[tuple[str, Callable[[ApplicationSettings, HitContext], str | None]], ...] = (
    ("soon_after_sent", _soon_after_sent),
    ("soon_after_delivered", _soon_after_delivered),
    (BEFORE_SENT, _before_sent),
    (MANY_RECIPIENTS, _many_recipients),
    ("all_links_at_once", _all_links_at_once),
)

#: The names of the contextual rules, in the order in which they are applied.
RULES = tuple(name for name, _ in _RULES)


class RecentAddresses:
    """The client IP addresses that opened links within the last minute, each with the number of recipients whose links it opened.
    Each process counts only its own hits.

    `limit` is the maximum number of pairs of address and recipient. If there are more, the oldest pairs are removed early. Counts
    may then be too low, but never too high.

    The times that are passed to `count` should not decrease, because the order of the calls determines which pairs are the
    oldest. If a time is more than a second before the time of the newest pair, for example because the clock was set back, all
    pairs with a later time are removed."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        # For each (address, recipient): the latest time at which the address opened a link of the recipient. The oldest pair
        # comes first.
        self._seen: OrderedDict[tuple[Hashable, int], datetime] = OrderedDict()
        self._recipients: dict[Hashable, int] = {}  # for each IP address: the number of its pairs in _seen

    def count(self, address: Hashable, recipient: int, at: datetime) -> int:
        """Record that the client `address` opened a link of `recipient` at the time `at`. Return the number of recipients,
        including `recipient`, whose links this address opened in the minute before `at`.

        `recipient` is the row id of the recipient's message. `address` is any value that identifies the client's IP address. If
        `address` is empty, the IP address is unknown, and the result is 0."""
        if not address:
            return 0
        while self._seen and next(reversed(self._seen.values())) > at + SECOND:
            self._remove(last=True)
        pair = (address, recipient)
        if pair not in self._seen:
            self._recipients[address] = self._recipients.get(address, 0) + 1
        self._seen[pair] = at
        self._seen.move_to_end(pair)
        while len(self._seen) > self._limit or next(iter(self._seen.values())) <= at - MINUTE:
            self._remove(last=False)
        return self._recipients.get(address, 0)

    def _remove(self, *, last: bool) -> None:
        """Remove the newest pair if `last` is true, otherwise the oldest one."""
        (address, _), _ = self._seen.popitem(last=last)
        self._recipients[address] -= 1
        if not self._recipients[address]:
            del self._recipients[address]

    def __len__(self) -> int:
        return len(self._seen)


class RecentLinks:
    """The messages with a hit in the last second, and their opened links. `limit` is the maximum number of messages that are
    stored."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        # For each message: the time of its latest hit, and the time of the latest hit on each of its links. The keys are row ids
        # of messages; the message with the oldest hit comes first.
        self._seen: OrderedDict[int, tuple[datetime, dict[int, datetime]]] = OrderedDict()

    def add(self, message: int, link: int, at: datetime) -> None:
        """Record that `link`, one of the links of `message`, was opened at `at`."""
        _, opened = self._seen.get(message, (at, {}))
        opened[link] = at
        self._seen[message] = (at, opened)
        self._seen.move_to_end(message)
        while len(self._seen) > self._limit or next(iter(self._seen.values()))[0] < at - SECOND:
            self._seen.popitem(last=False)

    def opened_at(self, message: int) -> Collection[datetime]:
        """Return, for each opened link of the message, the time of its latest hit. Return nothing if the message is not stored
        here."""
        return self._seen[message][1].values() if message in self._seen else ()

    def __len__(self) -> int:
        return len(self._seen)
