"""The fan-out creates the deliveries of each event: one for each topic of the event and each tracker that subscribes to the topic.

One transaction reads the oldest pending events, writes their facts and deliveries, and marks the events as fanned out. So a crash
neither repeats nor skips an event. The facts of an event are a snapshot of the database rows to which the event refers. Every
attempt builds its request body from the facts, even days later. An event without subscribers gets no facts. A tracker that a user
disabled gets no deliveries. For a tracker that the service disabled because of a 410 response, deliveries are created and wait. A
tracker with a filter for conversions gets only the conversions that the filter permits at the time of the fan-out
(conversion_filter.py).

The first click of a message also creates an event `conversion` with the action `clickthru`, if the setting `click_conversion` of
the application permits it. This event is delivered to the trackers that subscribe to conversions, after the state event. It is not
stored in the table `conversions`, so no statistics count it.

A suspected hit, which probably comes from a program, creates deliveries only for trackers with `with_suspected`, and never changes
the state of the message.

The fan-out also computes the state of a message before its first click, and the seconds between sending and click. The recorder of
hits leaves this work to the fan-out, because people wait for the responses of the recorder.

The first click of a message, on any of its links, also creates the delivery of the message's callback (Xoxzo's
`lt_callbackurl`: "called only once when the user clicked the short URL for the first time").

If a bug prevents the fan-out of an event, the event is quarantined: the service logs an error, creates no deliveries for the event,
and continues with the other events. `requeue_events` makes the event pending again after an upgrade.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from shortener.accounts.audit import AuditWriter
from shortener.accounts.directory import short_url
from shortener.clicks.throttle import Throttle
from shortener.delivery import fanout_queries
from shortener.delivery.fanout_queries import PendingEvent, Sources, Subscription
from shortener.delivery.queue_names import callback_queue, tracker_queue
from shortener.errors import StoreUnavailable
from shortener.ids import CONVERSION_IDS, ClickIds, IdGenerator, encode
from shortener.metrics import Metrics
from shortener.model import Clock, DeliveryStatus, HitFlag, State, Topic, Verdict
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import CountDelta, time_to_click
from shortener.plurals import counted
from shortener.storage.database import Database, rejects_values
from shortener.storage.types import iso_with_ms, to_ms

log = structlog.get_logger(__name__)

#: One transaction of the fan-out processes at most the first number of events. While many hits arrive, it processes at most the
#: second number, because hits wait on SQLite until the transaction ends.
MAX_EVENTS, MAX_EVENTS_WHILE_BUSY = 200, 50
#: A transaction that has created this many deliveries processes no further event. On SQLite, hits wait until the transaction ends.
#: Without this limit, 200 events of an application with 100 trackers would create 20,000 deliveries in one transaction, which takes
#: more than half a second. The next transactions process the events of other applications first, so that these events are not
#: delayed.
MAX_DELIVERIES = 1000

#: If a tracker receives both events of a first click, it gets the conversion this much later. The reason: a tracker receives
#: several requests at the same time, so without the delay the conversion could arrive before the state event.
CLICK_CONVERSION_DELAY_MS = 500

# Plain integers, because operations on enum flags are slow: each takes a microsecond.
_STATE, _CLICK, _CONVERSION, _SUSPECTED = (topic.value for topic in (Topic.STATE, Topic.CLICK, Topic.CONVERSION, Topic.SUSPECTED))
_FIRST_FOR_LINK, _FIRST_FOR_MESSAGE = HitFlag.FIRST_FOR_LINK.value, HitFlag.FIRST_FOR_MESSAGE.value
_PENDING = DeliveryStatus.PENDING.value
_STATE_NAMES = {state.value: state.name for state in State}
_VERDICT_NAMES = {verdict.value: verdict.api_name for verdict in Verdict}

DeliveryRow = tuple[int, int, int, int, int | None, str | None, str, int, int, int, int]


class FanoutResult(NamedTuple):
    """The numbers of processed events and of created deliveries. If the limit MAX_DELIVERIES ended a transaction, `largest` is the
    application with the most deliveries in it; otherwise None."""

    events: int
    deliveries: int
    largest: int | None = None


class Fanout:
    """The fan-out of one process. It calls `on_deliveries` after each commit that created deliveries."""

    def __init__(
        self,
        database: Database,
        ids: IdGenerator,
        click_ids: ClickIds,
        clock: Clock,
        *,
        base_url: str,
        throttle: Throttle,
        on_deliveries: Callable[[], None],
    ) -> None:
        self._database = database
        self._ids = ids
        self._click_ids = click_ids
        self._clock = clock
        self._base_url = base_url
        self._throttle = throttle
        self._on_deliveries = on_deliveries
        self.events = self.deliveries = self.quarantined = 0
        # Applications whose events wait until the events of all other applications were processed.
        self._postponed: frozenset[int] = frozenset()

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metrics of the fan-out, which /metrics returns."""
        metrics.counter("shortener_events_fanned_out", "Events whose deliveries were created.", lambda: self.events)
        metrics.counter("shortener_deliveries_created", "Deliveries that were created.", lambda: self.deliveries)
        metrics.counter("shortener_events_quarantined", "Events whose deliveries could not be created.", lambda: self.quarantined)

    async def step(self) -> int:
        """Create the deliveries of one batch of pending events. Return the number of events; 0 if none is pending.

        Raise StoreUnavailable if the database is unavailable. In this case the events stay pending."""
        loop = asyncio.get_running_loop()
        started, throttled = loop.time(), self._throttle.is_busy
        limit = MAX_EVENTS_WHILE_BUSY if throttled else MAX_EVENTS
        try:
            result = await self._database.write_later(self._fan_out, limit, without=self._postponed)
        except StoreUnavailable:
            raise
        except Exception:
            result = await self._one_by_one(limit)
        if result.largest is not None:
            self._postponed |= {result.largest}
        elif self._postponed:
            self._postponed = frozenset()
            if not result.events:
                return await self.step()
        self.events += result.events
        self.deliveries += result.deliveries
        if result.deliveries:
            self._on_deliveries()
        if throttled and result.events:
            await asyncio.sleep(self._throttle.pause_for(loop.time() - started))  # let hits use the database
        return result.events

    async def flush(self) -> None:
        """Create the deliveries of all pending events."""
        while await self.step():
            pass

    async def _one_by_one(self, limit: int) -> FanoutResult:
        """Create the deliveries of each event of a batch in its own transaction, and quarantine the events that fail."""
        events = deliveries = 0
        for event in await self._database.read(fanout_queries.pending_ids, limit):
            try:
                result = await self._database.write_later(self._fan_out, 1, event)
            except StoreUnavailable:
                raise
            except Exception as error:
                if isinstance(error, DBAPIError) and not rejects_values(error):
                    raise  # every event would cause this error, because the fault is in the SQL statement or in the database schema
                await self._database.write(fanout_queries.quarantine, event)
                self.quarantined += 1
                log.error("event_quarantined", event_id=encode(event), repair="shortener deliveries requeue", exc_info=error)
                result = FanoutResult(1, 0)
            events += result.events
            deliveries += result.deliveries
        return FanoutResult(events, deliveries)

    def read_facts(self, connection: Connection, events: list[int]) -> dict[int, dict[str, Any]]:
        """Return the facts of events, including events without subscribers. Unlike the fan-out, this function stores nothing."""
        found = {}
        for source in fanout_queries.sources(connection, events):
            number = None
            if _is_numbered(source):
                assert source.click_hit is not None
                number = fanout_queries.clicks_before(connection, source.link_id, source.click_hit) + 1
            found[source.event] = self._snapshot(source, number)
        return found

    # The fan-out calls the following methods inside the transaction of a batch.

    def _fan_out(
        self, connection: Connection, limit: int, only: int | None = None, without: frozenset[int] = frozenset()
    ) -> FanoutResult:
        """Create the deliveries of the oldest pending events, or only of the event with the id `only`. Skip the events of the
        applications in `without`."""
        events = fanout_queries.pending_events(connection, limit, only, without)
        if not events:
            return FanoutResult(0, 0)
        largest = None
        subscriptions = fanout_queries.subscriptions(connection, {event.application_id for event in events})
        outcomes = _conversion_outcomes(connection, events, subscriptions)
        now = to_ms(self._clock())
        facts: dict[int, str | None] = {}
        rows: list[DeliveryRow] = []
        delta = CountDelta()
        for event in events:
            if len(rows) >= MAX_DELIVERIES:
                largest = Counter(row[3] for row in rows).most_common(1)[0][0]
                break
            facts[event.id] = None
            if event.cohort_id is not None:
                seconds = time_to_click(event.at, event.sent_at, event.created_at, event.state)
                delta.add(event.cohort_id, event.at, seconds, message=event.message, link_set=event.link_set or 0)
            rows += self._deliveries(event, subscriptions.get(event.application_id, ()), outcomes.get(event.id), now)
        if rows:
            subscribed = list(dict.fromkeys(row[1] for row in rows))
            facts |= {event: orjson.dumps(snapshot).decode() for event, snapshot in self._facts(connection, subscribed).items()}
            fanout_queries.insert_deliveries(connection, rows)
        count_deltas.append(connection, self._ids(), delta)
        fanout_queries.mark_fanned_out(connection, facts)
        return FanoutResult(len(facts), len(rows), largest)

    def _deliveries(
        self,
        event: PendingEvent,
        subscriptions: Sequence[Subscription],
        outcome: tuple[str | None, str | None] | None,
        now: int,
    ) -> list[DeliveryRow]:
        """Return the deliveries of an event. If the event is a conversion and a tracker of its application has a filter, `outcome`
        is the action and the disposition of the conversion. Otherwise `outcome` is None."""

        def row(topic: int, tracker: int, next_at: int) -> DeliveryRow:
            queue = tracker_queue(tracker)
            return (self._ids(), event.id, topic, event.application_id, tracker, None, queue, _PENDING, 0, next_at, now)

        rows: list[DeliveryRow] = []
        suspected = event.topics & _SUSPECTED
        if subscriptions:
            for topic in _single_topics(event.topics & ~_SUSPECTED):
                permitted = subscriptions
                if outcome is not None and topic == _CONVERSION:
                    permitted = [one for one in subscriptions if one.permits(*outcome)]
                rows += [
                    row(topic, tracker, now)
                    for tracker, topics, with_suspected, *_ in permitted
                    if topics & topic and (with_suspected or not suspected)
                ]
        if not (event.flags and event.flags & _FIRST_FOR_MESSAGE):
            return rows
        if event.topics & _STATE:
            # The conversion follows the click, because Syniverse documents that a click creates "a click-thru and then a conversion
            # event".
            rows += [
                row(_CONVERSION, one.tracker, now + (CLICK_CONVERSION_DELAY_MS if one.topics & _STATE else 0))
                for one in subscriptions
                if one.has_click_conversions
            ]
        if event.callback_url and event.topics & _CLICK:
            queue = callback_queue(event.application_id, event.callback_url)
            rows.append(
                (self._ids(), event.id, _CLICK, event.application_id, None, event.callback_url, queue, _PENDING, 0, now, now)
            )
        return rows

    def _facts(self, connection: Connection, events: list[int]) -> dict[int, dict[str, Any]]:
        sources = fanout_queries.sources(connection, events)
        numbers = _click_numbers(connection, sources)
        return {source.event: self._snapshot(source, numbers.get(source.event)) for source in sources}

    def _snapshot(self, source: Sources, click_number: int | None) -> dict[str, Any]:
        """Return the facts of an event. The event id and the topic are missing, because each delivery adds them."""
        facts: dict[str, Any] = {
            "timestamp": iso_with_ms(source.at),
            "application_id": source.application_id,
            "company_id": source.company_id,
        }
        if source.message_id is not None:
            facts |= _message_facts(source)
        if source.code is not None:
            facts |= {
                "code": source.code,
                "short_url": short_url(source.base_url or self._base_url, source.path, source.code),
                "url": source.url,
                "label": source.label,
            }
        if source.click_hit is not None:
            facts |= {
                "click_id": self._click_ids.encode(source.click_hit),
                "verdict": _VERDICT_NAMES[source.verdict],
                "verdict_reason": source.rule,
                "user_agent": source.user_agent,
                "first_for_link": bool(source.flags & _FIRST_FOR_LINK),
                "first_for_message": bool(source.flags & _FIRST_FOR_MESSAGE),
                "click_number": click_number,
            }
        if source.click_country is not None:
            facts["click_country"] = source.click_country
        if source.conversion_id is not None:
            facts |= _conversion_facts(source, source.conversion_id)
        if source.topics & _STATE and source.hit_id == source.event:  # the event is the first click of its message
            facts |= {"previous_state": _STATE_NAMES[source.state], "new_state": _STATE_NAMES[State.CLICKTHRU]}
        if source.data is not None:
            data = orjson.loads(source.data)
            if "state" in data:  # the event is a delivery report, and a newer report may have changed the state
                facts |= {"new_state": data.pop("state"), "report_status": data.pop("status")}
            facts |= data
        return facts


def _conversion_outcomes(
    connection: Connection, events: Sequence[PendingEvent], subscriptions: Mapping[int, Sequence[Subscription]]
) -> dict[int, tuple[str | None, str | None]]:
    """Return the action and the disposition of each conversion event in `events`, by event id. Events are left out if no tracker of
    their application filters conversions.

    If all events are left out, the function runs no query."""
    filtering = {owner for owner, found in subscriptions.items() if any(one.filters_conversions for one in found)}
    chosen = [event.id for event in events if event.topics & _CONVERSION and event.application_id in filtering]
    return fanout_queries.conversion_outcomes(connection, chosen) if chosen else {}


def _message_facts(source: Sources) -> dict[str, Any]:
    sent_at = source.sent_at or source.created_at
    # The event of a retracted click contains the time of the click, not the time of the retraction.
    at = source.hit_at if source.hit_id is not None and source.click_hit is not None else source.at
    return {
        "message_id": source.message_id,
        "message_request_id": source.request_id,
        "external_message_request_id": source.external_request_id,
        "to_address": source.to_address,
        "phone_sha256": hashlib.sha256(source.to_address.encode()).hexdigest(),
        "from_address": source.from_address,
        "sender_id_id": source.sender_id_id,
        "sender_id_alias": source.sender_id_alias,
        "new_state": _STATE_NAMES[source.state if source.clicked_at is None else State.CLICKTHRU],
        "reason_code": source.reason_code,
        "reason_description": source.reason_description,
        "report_status": source.report_status,
        "telecom_message_id": source.telecom_message_id,
        "fragments_count": source.fragments_count or source.segments,
        "mt_price": source.mt_price,
        "has_attachment": False,
        "campaign": source.campaign or None,
        "source": source.source,
        "country": source.country or None,
        "metadata": source.metadata and orjson.loads(source.metadata),
        "process_key": source.process_key,
        "created_at": _iso(source.created_at),
        "sent_at": _iso(source.sent_at),
        "delivered_at": _iso(source.delivered_at),
        "clicked_at": _iso(at if source.hit_id is not None else source.clicked_at),
        "seconds_since_sent": _seconds(sent_at, at),
        "seconds_since_delivered": _seconds(source.delivered_at, at),
    }


def _conversion_facts(source: Sources, conversion_id: int) -> dict[str, Any]:
    return {
        "conversion_id": CONVERSION_IDS.encode(conversion_id),
        "action": source.action,
        "conversion_status": source.conversion_status,
        "disposition": source.disposition,
        "value": source.value,
        "currency": source.currency,
        "transaction_id": source.transaction_id or None,
        "conversion_metadata": source.conversion_metadata and orjson.loads(source.conversion_metadata),
    }


@lru_cache(maxsize=512)
def _single_topics(topics: int) -> tuple[int, ...]:
    """Split a combination of topic bits into its single bits."""
    return tuple(topic.value for topic in Topic(topics))


async def requeue_events(database: Database, audit: AuditWriter, now: datetime) -> int:
    """Make all quarantined events pending again. Return their number. Each transaction adds an audit row.

    Raise StoreUnavailable if the database is unavailable. In this case some events may already be pending."""
    found = await database.read(fanout_queries.quarantined_events)
    count = 0
    for start in range(0, len(found), MAX_EVENTS):
        count += await database.write(_requeue, audit, found[start : start + MAX_EVENTS], now)
    return count


def _requeue(connection: Connection, audit: AuditWriter, ids: Sequence[int], now: datetime) -> int:
    count = fanout_queries.requeue(connection, ids)
    if count:
        audit.add(connection, now, "events_requeued", counted(count, "event"))
    return count


def _click_numbers(connection: Connection, sources: Sequence[Sources]) -> dict[int, int]:
    """Return the click number of each click event, by event id: the first click of a link has number 1.

    Clicks beyond fanout_queries.MAX_CLICK_NUMBER get no number, and no number of a link is used twice. A later click has a higher
    number, unless the transaction of the later click was committed first."""
    numbers: dict[int, int] = {}
    repeats: dict[int, list[tuple[int, int]]] = defaultdict(list)  # link id -> (hit id, event id)
    for source in sources:
        if _is_numbered(source):
            assert source.click_hit is not None
            if source.flags & _FIRST_FOR_LINK:
                numbers[source.event] = 1
            else:
                repeats[source.link_id].append((source.click_hit, source.event))
    for link, clicks in sorted(repeats.items()):  # sorted, because processes that lock links in different orders could deadlock
        clicks.sort()
        first = fanout_queries.reserve_click_numbers(connection, link, clicks[0][0], len(clicks))
        for number, (_, event) in enumerate(clicks, first):
            if number <= fanout_queries.MAX_CLICK_NUMBER:
                numbers[event] = number
    return numbers


def _is_numbered(source: Sources) -> bool:
    """Return whether the event gets a click number: it must be a click of a person on a known link."""
    is_click = source.topics & _CLICK and not source.topics & _SUSPECTED and source.verdict == Verdict.HUMAN
    return bool(is_click and source.click_hit is not None and source.code is not None)


def _iso(ms: int | None) -> str | None:
    return None if ms is None else iso_with_ms(ms)


def _seconds(since: int | None, until: int) -> int | None:
    return None if since is None else max(until - since, 0) // 1000
