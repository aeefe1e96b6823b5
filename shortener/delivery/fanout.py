"""Fan-out: events become deliveries, one for each topic and each tracker that subscribed to it.

One transaction reads the oldest events that are not fanned out, writes the facts of those that somebody wants, writes their
deliveries and marks all of them: a crash repeats nothing and skips nothing. The facts are a snapshot of what the event points to;
bodies are rendered from it, at every attempt and after days. They are read once for the whole batch, by a few statements.

A click of somebody who is suspected to be no person is told only to trackers that ask for those too, and is never a state.

What a message was before its first click, and how soon that came, is found out here, where the message is read anyway: the
recorder, which has people waiting, reads none.

The first click of a message also makes the delivery of the message's own callback (Xoxzo's `lt_callbackurl`: "called only once when
the user clicked the short URL for the first time"), whichever of its links was clicked. A tracker that is disabled gets its
deliveries too: they wait with the others that are parked.

An event that this version cannot fan out (a fault of ours) is set aside, loudly: the others go on, it stays in the log without
deliveries, and `requeue_events` makes it pending again when the fault is mended.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from shortener.conversions.service import encode_conversion_id
from shortener.delivery import fanout_queries
from shortener.delivery.fanout_queries import PendingEvent, Sources, Subscription
from shortener.delivery.request import callback_queue
from shortener.delivery.throttle import Throttle
from shortener.errors import StoreUnavailable
from shortener.ids import ClickIds, IdGenerator, encode
from shortener.metrics import Metrics
from shortener.model import Clock, DeliveryStatus, HitFlag, State, Topic, Verdict
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import CountDelta, time_to_click
from shortener.storage.database import Database
from shortener.storage.types import from_ms, to_ms

log = structlog.get_logger(__name__)

#: Events of one transaction, and of one while hits come in, which on SQLite wait for it.
BATCH, PIECE = 200, 50

DeliveryRow = tuple[int, int, int, int, int | None, str | None, str, int, int, int, int]


class Fanout:
    """`on_deliveries` is called when a commit made some."""

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
        self.events = self.deliveries = self.quarantine = 0  # since the process began

    def register_metrics(self, metrics: Metrics) -> None:
        """Show the totals on /metrics."""
        metrics.counter("shortener_events_fanned_out", "Events whose deliveries are made.", lambda: self.events)
        metrics.counter("shortener_deliveries_made", "Deliveries that events made.", lambda: self.deliveries)
        metrics.counter("shortener_events_set_aside", "Events that a fault of ours keeps from going out.", lambda: self.quarantine)

    async def step(self) -> int:
        """Fan out one batch; returns the number of its events. Raises StoreUnavailable: then nothing of it was kept."""
        loop = asyncio.get_running_loop()
        began, gentle = loop.time(), self._throttle.is_busy
        limit = PIECE if gentle else BATCH
        try:
            events, deliveries = await self._database.write(self._fan_out, limit)
        except StoreUnavailable:
            raise
        except Exception:
            events, deliveries = await self._one_by_one(limit)
        self.events += events
        self.deliveries += deliveries
        if deliveries:
            self._on_deliveries()
        if gentle and events:
            await asyncio.sleep(self._throttle.pause_for(loop.time() - began))  # hits have the store meanwhile
        return events

    async def flush(self) -> None:
        """Fan out everything."""
        while await self.step():
            pass

    async def _one_by_one(self, limit: int) -> tuple[int, int]:
        """A fault of ours with one event must not hold up the others: each goes alone, and the one is set aside."""
        events = deliveries = 0
        for event in await self._database.read(fanout_queries.pending_ids, limit):
            try:
                done, made = await self._database.write(self._fan_out, 1, event)
            except StoreUnavailable:
                raise
            except Exception as error:
                if isinstance(error, DBAPIError) and not isinstance(error, DataError | IntegrityError):
                    raise  # the statement is wrong, or the schema: that is not this event's doing
                await self._database.write(fanout_queries.quarantine, event)
                self.quarantine += 1
                log.error("event_set_aside", event_id=encode(event), mend="shortener deliveries retell", exc_info=error)
                done, made = 1, 0
            events += done
            deliveries += made
        return events, deliveries

    # In the transaction.

    def _fan_out(self, connection: Connection, limit: int, only: int | None = None) -> tuple[int, int]:
        events = fanout_queries.pending_events(connection, limit, only)
        if not events:
            return 0, 0
        subscriptions = fanout_queries.subscriptions(connection, {event.application_id for event in events})
        now = to_ms(self._clock())
        facts: dict[int, str | None] = {}
        rows: list[DeliveryRow] = []
        tally = CountDelta()
        for event in events:
            facts[event.id] = None
            if event.cohort_id is not None:
                how_soon = time_to_click(event.at, event.sent_at, event.created_at, event.state)
                tally.add(event.cohort_id, event.at, how_soon)
            rows += self._deliveries(event, subscriptions.get(event.application_id, ()), now)
        if rows:
            wanted = list(dict.fromkeys(row[1] for row in rows))
            facts |= {event: orjson.dumps(snapshot).decode() for event, snapshot in self._facts(connection, wanted).items()}
            fanout_queries.insert_deliveries(connection, rows)
        count_deltas.append(connection, self._ids(), tally)
        fanout_queries.mark_fanned_out(connection, facts)
        return len(events), len(rows)

    def _deliveries(self, event: PendingEvent, subscriptions: Sequence[Subscription], now: int) -> list[DeliveryRow]:
        pending = int(DeliveryStatus.PENDING)
        rows: list[DeliveryRow] = []
        suspected = event.topics & Topic.SUSPECTED
        for topic in Topic(event.topics & ~Topic.SUSPECTED):
            rows += [
                (self._ids(), event.id, topic.value, event.application_id, tracker, None, f"t{tracker}", pending, 0, now, now)
                for tracker, topics, with_suspected in subscriptions
                if topics & topic and (with_suspected or not suspected)
            ]
        url = event.callback_url
        if url and event.flags and event.flags & HitFlag.FIRST_FOR_MESSAGE and event.topics & Topic.CLICK:
            lane = callback_queue(url)
            row = (self._ids(), event.id, Topic.CLICK.value, event.application_id, None, url, lane, pending, 0, now, now)
            rows.append(row)
        return rows

    def _facts(self, connection: Connection, events: list[int]) -> dict[int, dict[str, Any]]:
        sources = fanout_queries.sources(connection, events)
        numbers = _click_numbers(connection, sources)
        return {source.event: self._snapshot(source, numbers.get(source.event)) for source in sources}

    def _snapshot(self, source: Sources, click_number: int | None) -> dict[str, Any]:
        """The facts of an event but its id and topic, which depend on what it is told as (formats.FACTS)."""
        facts: dict[str, Any] = {
            "timestamp": iso(source.at),
            "application_id": source.application_id,
            "company_id": source.company_id,
        }
        if source.message_id is not None:
            sent_at = source.sent_at or source.created_at
            # What takes a click back still tells how soon that click came.
            at = source.hit_at if source.hit_id is not None and source.click_hit is not None else source.at
            facts |= {
                "message_id": source.message_id,
                "message_request_id": source.request_id,
                "external_message_request_id": source.external_request_id,
                "to_address": source.to_address,
                "phone_sha256": hashlib.sha256(source.to_address.encode()).hexdigest(),
                "from_address": source.from_address,
                "sender_id_id": source.sender_id_id,
                "sender_id_alias": source.sender_id_alias,
                "new_state": (State(source.state) if source.clicked_at is None else State.CLICKTHRU).name,
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
                "sent_at": _iso(source.sent_at),
                "delivered_at": _iso(source.delivered_at),
                "clicked_at": _iso(at if source.hit_id is not None else source.clicked_at),
                "seconds_since_sent": _seconds(sent_at, at),
                "seconds_since_delivered": _seconds(source.delivered_at, at),
            }
        if source.code is not None:
            facts |= {
                "code": source.code,
                "short_url": f"{source.base_url or self._base_url}/{source.code}",
                "url": source.url,
                "label": source.label,
            }
        if source.click_hit is not None:
            facts |= {
                "click_id": self._click_ids.encode(source.click_hit),
                "verdict": Verdict(source.verdict).api_name,
                "verdict_reason": source.rule,
                "user_agent": source.user_agent,
                "first_for_link": bool(source.flags & HitFlag.FIRST_FOR_LINK),
                "first_for_message": bool(source.flags & HitFlag.FIRST_FOR_MESSAGE),
                "click_number": click_number,
            }
        if source.conversion_id is not None:
            facts |= {
                "conversion_id": encode_conversion_id(source.conversion_id),
                "action": source.action,
                "conversion_status": source.conversion_status,
                "disposition": source.disposition,
                "value": source.value,
                "currency": source.currency,
                "transaction_id": source.transaction_id or None,
                "conversion_metadata": source.conversion_metadata and orjson.loads(source.conversion_metadata),
            }
        if source.topics & Topic.STATE and source.hit_id == source.event:  # the first click of its message
            facts |= {"previous_state": State(source.state).name, "new_state": State.CLICKTHRU.name}
        if source.data is not None:
            data = orjson.loads(source.data)
            if "state" in data:  # a delivery report: its own words, not those of a newer one
                facts |= {"new_state": data.pop("state"), "report_status": data.pop("status")}
            facts |= data
        return facts


async def requeue_events(database: Database) -> int:
    """Make the events that were set aside pending again; returns how many. Raises StoreUnavailable: some may be done then."""
    found = await database.read(fanout_queries.quarantined_events)
    count = 0
    for start in range(0, len(found), BATCH):
        count += await database.write(fanout_queries.requeue, found[start : start + BATCH])
    return count


def _click_numbers(connection: Connection, sources: Sequence[Sources]) -> dict[int, int]:
    """By event: the how manieth click of its link it is, as far as fanout_queries.COUNTED_CLICKS."""
    numbers: dict[int, int] = {}
    later: dict[int, list[tuple[int, int]]] = defaultdict(list)  # link -> (hit, event)
    for source in sources:
        is_click = source.topics & Topic.CLICK and not source.topics & Topic.SUSPECTED
        if is_click and source.click_hit is not None and source.code is not None:
            if source.flags & HitFlag.FIRST_FOR_LINK:
                numbers[source.event] = 1
            else:
                later[source.link_id].append((source.click_hit, source.event))
    for link, clicks in later.items():
        clicks.sort()
        for number, (_, event) in enumerate(clicks, fanout_queries.clicks_before(connection, link, clicks[0][0]) + 1):
            if number <= fanout_queries.COUNTED_CLICKS:
                numbers[event] = number
    return numbers


def iso(ms: int) -> str:
    """ISO 8601 in UTC, always with milliseconds, as Syniverse writes it."""
    return f"{from_ms(ms).isoformat(timespec='milliseconds')[:-6]}Z"


def _iso(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)


def _seconds(since: int | None, until: int) -> int | None:
    return None if since is None else max(until - since, 0) // 1000
