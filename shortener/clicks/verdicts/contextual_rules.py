"""Rules that judge a hit by its circumstances: how soon it came, and what else its address opened.

A scanner with the agent of a plain Chrome is known by nothing else. Each rule is a setting of the application (accounts) and off
until it is set, because each has its price in people:

- `min_seconds_after_sent`: a hit sooner than that after SENT, or before it. Carriers scan links on the way. Price: people whose
  phone is in their hand, if set above a few seconds; everybody, if the pipeline's clock is ahead of this machine's.
- `min_seconds_after_delivered`: a hit within that of DELIVERED, before or after it, since a phone may scan the link before the
  carrier notes the time. Longer before it suspects nobody: carriers report late, and many know the time only to the minute.
  Price: the fastest readers; and a report that comes after the click speaks only when the hit is judged again.
- `max_recipients_per_address_minute`: a scanner opens the links of many people from one address. Price: carriers put thousands of
  phones behind one address, so a campaign of some size has hundreds of true clicks a minute from one. Set it well above that.
- `all_links_within_second`: a scanner opens every link of a message at once. Price: a person who taps two links quickly, or
  whose phone previews them.

The first hits of a scanner pass, since nothing yet speaks against them; `reclassifier` calls them back when the evidence is there.

Pure functions over facts that the caller gathered; only the two watches keep something, in this process's memory, bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from datetime import datetime, timedelta

from shortener.accounts.settings import ApplicationSettings
from shortener.clicks.verdicts.request_rules import Classification
from shortener.model import Verdict

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class HitContext:
    """What is known around a hit. What is not known is None, 0 or empty, and suspects nobody."""

    at: datetime
    sent_at: datetime | None = None
    delivered_at: datetime | None = None
    recipients_of_address: int = 0  # whose links the hit's address opened within a minute, this one's included (`RecentAddresses`)
    links_of_message: int = 0
    opened_at: Collection[datetime] = ()  # for each link of the message that was opened, the time nearest to this one


def classify_by_context(settings: ApplicationSettings, facts: HitContext) -> Classification | None:
    """The first rule that suspects the hit, or None: then the verdict by the request stands."""
    for name, rule in _RULES:
        if reason := rule(settings, facts):
            return Classification(Verdict.SUSPECTED, name, reason)
    return None


def _soon_after_sent(settings: ApplicationSettings, facts: HitContext) -> str | None:
    if settings.min_seconds_after_sent is None or facts.sent_at is None:
        return None
    seconds = (facts.at - facts.sent_at).total_seconds()
    return _away(seconds, "sent") if seconds < settings.min_seconds_after_sent else None


def _soon_after_delivered(settings: ApplicationSettings, facts: HitContext) -> str | None:
    if settings.min_seconds_after_delivered is None or facts.delivered_at is None:
        return None
    seconds = (facts.at - facts.delivered_at).total_seconds()
    return _away(seconds, "delivered") if abs(seconds) < settings.min_seconds_after_delivered else None


def _away(seconds: float, what: str) -> str:
    return f"{abs(seconds):.1f} s {'before' if seconds < 0 else 'after'} the message was {what}"


def _many_recipients(settings: ApplicationSettings, facts: HitContext) -> str | None:
    most = settings.max_recipients_per_address_minute
    if most is None or facts.recipients_of_address <= most:
        return None
    return f"{facts.recipients_of_address} recipients' links opened from one address within a minute"


def _all_links_at_once(settings: ApplicationSettings, facts: HitContext) -> str | None:
    if not settings.all_links_within_second or facts.links_of_message < 2 or len(facts.opened_at) < facts.links_of_message:
        return None
    at_once = max(facts.opened_at) - min(facts.opened_at) <= SECOND
    return f"all {facts.links_of_message} links of the message opened within a second" if at_once else None


_RULES: tuple[tuple[str, Callable[[ApplicationSettings, HitContext], str | None]], ...] = (
    ("soon_after_sent", _soon_after_sent),
    ("soon_after_delivered", _soon_after_delivered),
    ("many_recipients", _many_recipients),
    ("all_links_at_once", _all_links_at_once),
)

#: The names of the rules in the order in which they are asked.
RULES = tuple(name for name, _ in _RULES)


class RecentAddresses:
    """How many recipients' links an address opened within the last minute, as far as this process saw.

    Holds at most `limit` pairs of address and recipient; beyond that the oldest are forgotten before their minute is over, and
    counts come out too low, never too high. With several processes each counts its own share. Times should not go backwards; one
    that does is counted as if it were in order.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._seen: OrderedDict[tuple[Hashable, int], datetime] = OrderedDict()  # oldest first
        self._recipients: dict[Hashable, int] = {}  # by address, for what is in _seen

    def count(self, address: Hashable, recipient: int, at: datetime) -> int:
        """Note that `address`, or whatever stands for it, opened a link of `recipient` (a message's id, say) at `at`; how many
        recipients that makes within the minute up to then, this one included. 0 for an empty address: one that is not known."""
        if not address:
            return 0
        pair = (address, recipient)
        if pair not in self._seen:
            self._recipients[address] = self._recipients.get(address, 0) + 1
        self._seen[pair] = at
        self._seen.move_to_end(pair)
        while len(self._seen) > self._limit or next(iter(self._seen.values())) <= at - MINUTE:
            (forgotten, _), _ = self._seen.popitem(last=False)
            self._recipients[forgotten] -= 1
            if not self._recipients[forgotten]:
                del self._recipients[forgotten]
        return self._recipients.get(address, 0)

    def __len__(self) -> int:
        return len(self._seen)


class RecentLinks:
    """The links of messages that were opened within the last second."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._seen: OrderedDict[int, tuple[datetime, dict[int, datetime]]] = OrderedDict()  # by message, oldest first

    def note(self, message: int, link: int, at: datetime) -> None:
        """`link`, one of the links of `message`, was opened at `at`."""
        _, opened = self._seen.get(message, (at, {}))
        opened[link] = at
        self._seen[message] = (at, opened)
        self._seen.move_to_end(message)
        while len(self._seen) > self._limit or next(iter(self._seen.values()))[0] < at - SECOND:
            self._seen.popitem(last=False)

    def opened_at(self, message: int) -> Collection[datetime]:
        """The last time of each link of the message that was opened."""
        return self._seen[message][1].values() if message in self._seen else ()

    def __len__(self) -> int:
        return len(self._seen)
