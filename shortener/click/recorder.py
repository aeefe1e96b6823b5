"""Recording hits: group commit, the first click, and what happens while the store is away.

Hits that arrive while a commit is running form the next batch: one look-up for all codes, one insert, one conditional update
for links and one for messages, one insert of events, one commit. Under load the cost of a commit is shared; at rest a hit waits
for nobody.

Promises. A landing is given out once its hit is durable. If the store does not take the hit within `deadline` seconds, the
redirect goes on from a plain read, and the hit waits in memory (at most `waiting_limit` of them, counted by `unrecorded`) and is
written, with its own time, when the store is back. If the code cannot even be read, `StoreUnavailable` is raised, and the hit,
which was never answered, is not kept.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Connection

from shortener.click import queries
from shortener.click.queries import EventRow, HitRow, Target
from shortener.errors import StoreUnavailable
from shortener.ids import ClickIds, IdMaker
from shortener.log import tallies
from shortener.log.tallies import Tally
from shortener.metrics import Metrics
from shortener.model import HitFlag, LinkFlag, State, Topic, Verdict
from shortener.rewrite.destinations import append_param, fill
from shortener.store.database import Database

log = structlog.get_logger(__name__)

BATCH = 1024
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between attempts of a batch that the store did not take


@dataclass(slots=True)
class Hit:
    """One request for a code. `domain_id` None: came on the default host, where every code counts. `at`: ms since 1970."""

    id: int
    code: str
    domain_id: int | None
    at: int
    verdict: Verdict
    rule: str
    address: str
    user_agent: str


@dataclass(frozen=True, slots=True)
class Landing:
    """Where a hit leads: a `location` (302), or none of it and the reason why."""

    location: bytes | None
    application_id: int = 0
    gone: bool = False  # expired or switched off: 410, or 302 when there is a fallback


UNKNOWN = Landing(None)


@dataclass(slots=True)
class _Waiting:
    hit: Hit
    landing: asyncio.Future[Landing]
    overdue_at: float  # loop time


@dataclass(slots=True)
class Outcome:
    """What a committed batch did."""

    landings: list[Landing]
    events: int = 0
    recorded: int = 0
    first_clicks: int = 0


@dataclass(slots=True)
class Totals:
    """For /metrics, since the process began."""

    recorded: int = 0
    first_clicks: int = 0
    batches: int = 0
    late_answers: int = 0  # redirects that did not wait for the store
    dropped: int = 0  # hits given up because too many were waiting
    unknown: int = 0
    verdicts: dict[tuple[Verdict, str], int] = field(default_factory=dict)  # hits that were answered, by verdict and rule
    answers: dict[int, int] = field(default_factory=dict)  # of the redirect, by status


class Places:
    """What a landing needs to know of applications and domains; `accounts.Directory` behind two questions."""

    def __init__(
        self,
        fallback: Callable[[int, int], str | None],
        click_id_param: Callable[[int], str | None],
        disabled: Callable[[int, int], bool],
    ) -> None:
        self.fallback = fallback  # (application, domain) -> URL for expired links
        self.click_id_param = click_id_param  # application -> parameter name
        self.disabled = disabled  # (application, domain) -> switched off


class Recorder:
    def __init__(
        self,
        database: Database,
        ids: IdMaker,
        click_ids: ClickIds,
        places: Places,
        *,
        deadline: float,
        waiting_limit: int,
        on_events: Callable[[], None],
    ) -> None:
        self._database = database
        self._ids = ids
        self._click_ids = click_ids
        self._places = places
        self._deadline = deadline
        self._waiting_limit = waiting_limit
        self._on_events = on_events
        self._waiting: deque[_Waiting] = deque()
        self._batch: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.totals = Totals()

    @property
    def unrecorded(self) -> int:
        """Hits in memory that no commit holds yet."""
        return len(self._waiting) + len(self._batch)

    def offer(self, metrics: Metrics) -> None:
        """Show the totals on /metrics."""
        totals = self.totals
        metrics.counter(
            "shortener_redirects",
            "Answers to requests for a code, by status.",
            lambda: {(str(status),): count for status, count in totals.answers.items()},
            "status",
        )
        metrics.counter(
            "shortener_hits",
            "Hits on links, by verdict and the rule that gave it.",
            lambda: {(verdict.word, rule): count for (verdict, rule), count in totals.verdicts.items()},
            "verdict",
            "rule",
        )
        metrics.counter("shortener_hits_recorded", "Hits that are durable.", lambda: totals.recorded)
        metrics.gauge("shortener_hits_unrecorded", "Hits in memory that no commit holds yet.", lambda: self.unrecorded)
        metrics.counter("shortener_hits_dropped", "Hits given up, most because too many were waiting.", lambda: totals.dropped)
        metrics.counter("shortener_hits_unknown", "Requests for codes that no link has.", lambda: totals.unknown)
        metrics.counter("shortener_hit_batches", "Commits that hits shared.", lambda: totals.batches)
        metrics.counter("shortener_first_clicks", "Messages that moved to CLICKTHRU.", lambda: totals.first_clicks)
        metrics.counter("shortener_late_answers", "Redirects that did not wait for the store.", lambda: totals.late_answers)

    def start(self) -> None:
        self._spawn(self._commit_batches())
        self._spawn(self._answer_overdue())

    async def record(self, hit: Hit) -> Landing:
        """Where the hit leads, once it is durable (see the module's promises). Raises StoreUnavailable."""
        loop = asyncio.get_running_loop()
        if len(self._waiting) >= self._waiting_limit:
            self.totals.dropped += 1
            return (await self._read([hit]))[0]
        waiting = _Waiting(hit, loop.create_future(), loop.time() + self._deadline)
        self._waiting.append(waiting)
        self._wake.set()
        self._idle.clear()
        return await waiting.landing

    async def flush(self) -> None:
        """Return when nothing waits any more."""
        await self._idle.wait()

    async def stop(self, grace: float) -> None:
        """Write what waits, for at most `grace` seconds."""
        try:
            await asyncio.wait_for(self._idle.wait(), grace)
        except TimeoutError:
            log.error("hits_lost_at_shutdown", hits=self.unrecorded)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(coroutine))

    async def _commit_batches(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                self._batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                await self._commit(self._batch)
                self._batch = []
            self._idle.set()

    async def _commit(self, batch: list[_Waiting]) -> None:
        """Write one batch, however long that takes; answer those that still wait."""
        pause = _FIRST_PAUSE
        again = False
        while True:
            hits = [waiting.hit for waiting in batch]
            try:
                outcome = await self._database.write(self._record, hits, again)
            except StoreUnavailable:
                # The commit may have arrived all the same (a connection lost at the wrong moment): look before writing again.
                again = True
            except Exception as error:
                await self._isolate(batch, error)
                return
            else:
                self._done(batch, outcome)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            # A hit that nobody could be sent on for was never answered: it is not a click.
            batch[:] = [w for w in batch if not (w.landing.done() and w.landing.exception() is not None)]
            if not batch:
                return

    async def _isolate(self, batch: list[_Waiting], error: Exception) -> None:
        """A fault of ours with one hit must not hold up the others: each goes alone, and the one is let go, loudly."""
        if len(batch) > 1:
            for waiting in batch:
                await self._commit([waiting])
            return
        log.error("hit_not_recordable", code=batch[0].hit.code, exc_info=error)
        self.totals.dropped += 1
        await self._send_on([waiting for waiting in batch if not waiting.landing.done()])

    def _done(self, batch: list[_Waiting], outcome: Outcome) -> None:
        totals = self.totals
        totals.batches += 1
        totals.recorded += outcome.recorded
        totals.first_clicks += outcome.first_clicks
        totals.unknown += len(batch) - outcome.recorded
        for waiting, landing in zip(batch, outcome.landings, strict=True):
            if not waiting.landing.done():
                waiting.landing.set_result(landing)
        if outcome.events:
            self._on_events()

    async def _answer_overdue(self) -> None:
        """Send people on whose hit the store did not take in time."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            overdue = [w for w in (*self._batch, *self._waiting) if w.overdue_at <= now and not w.landing.done()]
            if overdue:
                await self._send_on(overdue)
            oldest = next((w for w in (*self._batch, *self._waiting) if not w.landing.done()), None)
            await asyncio.sleep(self._deadline if oldest is None else max(0.005, oldest.overdue_at - loop.time()))

    async def _send_on(self, overdue: list[_Waiting]) -> None:
        try:
            landings = await asyncio.wait_for(self._read([w.hit for w in overdue]), self._deadline)
        except (StoreUnavailable, TimeoutError) as error:
            for waiting in overdue:
                if not waiting.landing.done():
                    waiting.landing.set_exception(StoreUnavailable(str(error)))
            return
        for waiting, landing in zip(overdue, landings, strict=True):
            if not waiting.landing.done():
                waiting.landing.set_result(landing)
                self.totals.late_answers += 1
        log.warning("redirects_without_the_store", hits=len(overdue), unrecorded=self.unrecorded)

    async def _read(self, hits: Sequence[Hit]) -> list[Landing]:
        targets = await self._database.read(queries.find, {hit.code for hit in hits})
        return [self._landing(hit, targets.get(hit.code)) for hit in hits]

    # In the transaction.

    def _record(self, connection: Connection, hits: Sequence[Hit], again: bool = False) -> Outcome:
        targets = queries.find(connection, {hit.code for hit in hits})
        outcome = Outcome([self._landing(hit, targets.get(hit.code)) for hit in hits])
        known = queries.known_hits(connection, [hit.id for hit in hits]) if again else set()
        real = [
            (hit, target)
            for hit in hits
            if (target := targets.get(hit.code)) is not None and _on_its_domain(hit, target) and hit.id not in known
        ]
        if not real:
            return outcome

        # The first person on each link, then on each message. `hits` is in order of arrival.
        first_on_link: dict[int, tuple[Hit, Target]] = {}
        for hit, target in real:
            if hit.verdict is Verdict.HUMAN and target.clicked_at is None and self._counts(hit, target):
                first_on_link.setdefault(target.link_id, (hit, target))
        won_links: set[int] = set()
        won_messages: dict[int, int] = {}
        if first_on_link:
            won_links = queries.claim_links(connection, {link: hit.at for link, (hit, _) in first_on_link.items()})
            first_on_message: dict[int, tuple[int, int]] = {}
            for link, (hit, target) in first_on_link.items():
                if link in won_links and target.message_clicked_at is None:
                    first_on_message.setdefault(target.message, (hit.at, target.state))
            if first_on_message:
                won_messages = queries.claim_messages(connection, first_on_message)

        hit_rows: list[HitRow] = []
        event_rows: list[EventRow] = []
        tally = Tally()
        for hit, target in real:
            flags = HitFlag.NONE
            topics = Topic(0)
            data: str | None = None
            late = hit.at >= target.expires_at
            if late:
                flags |= HitFlag.LATE
                tally.add(target.cohort_id, hit.at, "late_hits")
                if hit.verdict is Verdict.HUMAN and not self._is_off(target):
                    topics = Topic.LATE_CLICK
            elif hit.verdict is Verdict.HUMAN and self._counts(hit, target):
                tally.add(target.cohort_id, hit.at, "clicks")
                first = first_on_link.get(target.link_id)
                if target.link_id in won_links and first is not None and first[0] is hit:
                    flags |= HitFlag.FIRST_FOR_LINK
                    topics |= Topic.CLICK
                    previous = won_messages.pop(target.message, None)
                    if previous is not None:
                        flags |= HitFlag.FIRST_FOR_MESSAGE
                        topics |= Topic.STATE
                        data = f'{{"previous_state":"{State(previous).name}","new_state":"CLICKTHRU"}}'
                        outcome.first_clicks += 1
                        tally.add(target.cohort_id, hit.at, "clicked_messages")
                        seconds = (hit.at - (target.sent_at or target.created_at)) / 1000
                        tally.add(target.cohort_id, hit.at, f"ttc:{time_to_click_bucket(seconds)}")
                elif target.flags & LinkFlag.EVERY_CLICK:
                    topics |= Topic.CLICK
            elif hit.verdict is Verdict.SUSPECTED:
                tally.add(target.cohort_id, hit.at, "suspected_hits")
            elif hit.verdict is Verdict.IGNORED:
                tally.add(target.cohort_id, hit.at, "ignored_hits")
            row: HitRow = (
                hit.id,
                target.link_id,
                hit.at,
                int(hit.verdict),
                hit.rule,
                int(flags),
                hit.address,
                hit.user_agent,
            )
            hit_rows.append(row)
            if topics:
                event = (
                    self._ids(),
                    target.application_id,
                    int(topics),
                    hit.at,
                    target.message,
                    target.link_id,
                    hit.id,
                    data,
                    False,
                )
                event_rows.append(event)
        queries.insert_hits(connection, hit_rows)
        if event_rows:
            queries.insert_events(connection, event_rows)
        tallies.append(connection, self._ids(), tally)
        outcome.recorded = len(hit_rows)
        outcome.events = len(event_rows)
        return outcome

    def _counts(self, hit: Hit, target: Target) -> bool:
        """Whether a person's hit is a click at all: the link is alive and nothing switched it off."""
        return hit.at < target.expires_at and not self._is_off(target)

    def _is_off(self, target: Target) -> bool:
        return target.disabled_at is not None or self._places.disabled(target.application_id, target.domain_id)

    def _landing(self, hit: Hit, target: Target | None) -> Landing:
        if target is None or not _on_its_domain(hit, target):
            return UNKNOWN
        if self._is_off(target):
            return Landing(None, target.application_id, gone=True)
        if hit.at >= target.expires_at:
            fallback = target.fallback_url or self._places.fallback(target.application_id, target.domain_id)
            return Landing(fallback.encode() if fallback else None, target.application_id, gone=True)
        location = (target.location or target.url).encode()
        if target.flags & LinkFlag.FILL_CLICK_ID:
            location = fill(location, {"click_id": self._click_ids.spell(hit.id)})
        if target.flags & LinkFlag.APPEND_CLICK_ID:
            name = self._places.click_id_param(target.application_id)
            if name:
                location = append_param(location, name, self._click_ids.spell(hit.id))
        return Landing(location, target.application_id)


def _on_its_domain(hit: Hit, target: Target) -> bool:
    return hit.domain_id is None or hit.domain_id == target.domain_id


#: Buckets of time to click grow by 5 %, so a percentile read from them is right within 2.5 %.
_GROWTH = math.log(1.05)


def time_to_click_bucket(seconds: float) -> int:
    """The bucket of a time to click: 0 up to one second, then one more for every 5 %."""
    return 0 if seconds <= 1 else 1 + int(math.log(seconds) / _GROWTH)


def time_to_click_seconds(bucket: int) -> float:
    """The middle of a bucket, in seconds."""
    return 0.5 if bucket == 0 else math.exp((bucket - 0.5) * _GROWTH)
