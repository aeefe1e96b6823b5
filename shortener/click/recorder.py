"""Recording hits: group commit, the first click, and what happens while the store is away.

Hits that arrive while a commit is running form the next batch: one look-up for all codes, one insert, one conditional update
for links and one for messages, one insert of events, one commit. Under load the cost of a commit is shared; at rest a hit waits
for nobody.

Promises. A landing is given out once its hit is durable. If the store does not take the hit within `deadline` seconds, the
redirect goes on from the link cache or a plain read, and the hit waits in memory (at most `waiting_limit` of them, counted by
`unrecorded`) and is written, with its own time, when the store is back. If the code cannot even be read, `StoreUnavailable` is
raised, and the hit, which was never answered, is not kept.

With a spool (Redis), a store that refuses a batch, or does not take it in time, is in an `outage`: from then on hits go to the
spool at once, and their landings out when they are there; memory is for what the spool does not take. `spool.Drainer` writes them
later and ends the outage.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shortener.accounts import ApplicationSettings, Special
from shortener.click import queries
from shortener.click.address import shorten_address
from shortener.click.circumstance import RULES as CIRCUMSTANCES
from shortener.click.circumstance import AddressWatch, Facts, LinkWatch, judge_circumstance
from shortener.click.devices import LATE, count_late
from shortener.click.queries import EventRow, HitRow, Target
from shortener.click.verdict import RULES
from shortener.errors import StoreUnavailable
from shortener.ids import ClickIds, IdMaker
from shortener.log import tallies
from shortener.log.tallies import Tally
from shortener.metrics import Metrics
from shortener.model import HitFlag, LinkFlag, State, Topic, Verdict
from shortener.rewrite.destinations import append_param, fill
from shortener.store.database import Database
from shortener.store.links import LinkCache, NoLinkCache
from shortener.store.rounds import Rounds
from shortener.store.types import from_ms

if TYPE_CHECKING:
    from shortener.click.spool import Spool

log = structlog.get_logger(__name__)

LEAST, BATCH = 16, 1024  # hits of a commit, as far as there are any
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between attempts of a batch that the store did not take
_QUIET = 1.0  # seconds between two warnings of the same thing


# Plain numbers: flags of the enum module cost microseconds each, on every hit.
_FIRST_FOR_LINK, _FIRST_FOR_MESSAGE = int(HitFlag.FIRST_FOR_LINK), int(HitFlag.FIRST_FOR_MESSAGE)
_LATE, _OFF = int(HitFlag.LATE), int(HitFlag.OFF)
_STATE, _CLICK, _LATE_CLICK = int(Topic.STATE), int(Topic.CLICK), int(Topic.LATE_CLICK)
_SUSPECTED_CLICK = int(Topic.CLICK | Topic.SUSPECTED)
_EVERY_CLICK, _FILL, _APPEND = int(LinkFlag.EVERY_CLICK), int(LinkFlag.FILL_CLICK_ID), int(LinkFlag.APPEND_CLICK_ID)
_MOVED = {int(state): f'{{"previous_state":"{state.name}","new_state":"CLICKTHRU"}}' for state in State}


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
    origin: int = 0  # tells addresses apart in the memory of this process; means nothing outside of it


@dataclass(frozen=True, slots=True)
class Landing:
    """Where a hit leads: a `location` (302), or none of it and the reason why."""

    location: bytes | None
    application_id: int = 0
    gone: bool = False  # expired or switched off: 410, or 302 when there is a fallback
    off: bool = False  # switched off


UNKNOWN = Landing(None)


class Awaited(Protocol):
    """Who waits for a landing: a future, or something that answers there and then. Its setters raise nothing."""

    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def exception(self) -> BaseException | None: ...
    def set_result(self, landing: Landing, /) -> None: ...
    def set_exception(self, error: StoreUnavailable, /) -> None: ...


@dataclass(slots=True)
class _Waiting:
    hit: Hit
    landing: Awaited
    overdue_at: float  # loop time
    sent_on: bool = False  # somebody looks after its landing, without the store's commit
    spooled: bool = False  # durable in the spool: memory need not hold it


class Leads(Protocol):
    """What is known of a link, wherever it was read: as much as a landing needs."""

    @property
    def application_id(self) -> int: ...
    @property
    def domain_id(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def url(self) -> str: ...
    @property
    def location(self) -> str | None: ...
    @property
    def fallback_url(self) -> str | None: ...
    @property
    def expires_at(self) -> int: ...
    @property
    def disabled_at(self) -> int | None: ...


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
    spooled: int = 0
    drained: int = 0
    dropped: int = 0  # hits given up because too many were waiting
    unknown: int = 0
    verdicts: dict[tuple[Verdict, str], int] = field(  # hits that were answered, by verdict and rule
        default_factory=lambda: dict.fromkeys((*RULES, *((Verdict.SUSPECTED, name) for name in CIRCUMSTANCES)), 0)
    )
    answers: dict[int, int] = field(default_factory=dict)  # of the redirect, by status


class Places:
    """What a landing and a record need to know of applications and domains; `accounts.Directory` behind four questions."""

    def __init__(
        self,
        fallback: Callable[[int, int], str | None],
        click_id_param: Callable[[int], str | None],
        disabled: Callable[[int, int], bool],
        special: Callable[[], Special],
    ) -> None:
        self.fallback = fallback  # (application, domain) -> URL for expired links
        self.click_id_param = click_id_param  # application -> parameter name
        self.disabled = disabled  # (application, domain) -> switched off
        self.special = special


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
        cache: LinkCache | None = None,
        spool: Spool | None = None,
    ) -> None:
        self._database = database
        self._ids = ids
        self._click_ids = click_ids
        self._places = places
        self._deadline = deadline
        self._waiting_limit = waiting_limit
        self._on_events = on_events
        self._cache = cache or NoLinkCache()
        self._spool = spool
        self._addresses = AddressWatch()
        self._links = LinkWatch()
        self.outage = False
        self._rounds: Rounds[_Waiting] = Rounds(database, self._write, least=LEAST, limit=BATCH, idle=self._look_idle)
        self._rounds.hold()
        self._aside: deque[_Waiting] = deque()  # came during an outage
        self._going: list[_Waiting] = []  # on their way to the spool
        self._wake_aside = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._quiet_until = 0.0  # loop time of the next warning
        self._tasks: set[asyncio.Task[None]] = set()
        self.totals = Totals()

    @property
    def unrecorded(self) -> int:
        """Hits in memory that no commit holds yet."""
        return len(self._rounds) + len(self._aside) + len(self._going)

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
        metrics.gauge("shortener_store_outage", "1 while hits go to the spool.", lambda: self.outage)
        metrics.counter("shortener_hits_spooled", "Hits that the spool took for the store.", lambda: totals.spooled)
        metrics.counter("shortener_hits_drained", "Hits that were written from the spool.", lambda: totals.drained)
        metrics.counter("shortener_late_answers", "Redirects that did not wait for the store.", lambda: totals.late_answers)

    def start(self) -> None:
        self._rounds.start()
        self._spawn(self._answer_overdue())
        if self._spool is not None:
            self._spawn(self._set_aside())

    async def record(self, hit: Hit) -> Landing:
        """Where the hit leads, once it is durable (see the module's promises). Raises StoreUnavailable."""
        landing: asyncio.Future[Landing] = asyncio.get_running_loop().create_future()
        if self.take(hit, landing):
            return await landing
        self.totals.dropped += 1
        return (await self._read([hit]))[0]

    def take(self, hit: Hit, landing: Awaited) -> bool:
        """The same for who is told. False: too many hits wait, and this one was not taken."""
        waiting = _Waiting(hit, landing, asyncio.get_running_loop().time() + self._deadline)
        if self.outage:
            self._aside.append(waiting)
            self._wake_aside.set()
        elif self._rounds.waiting < self._waiting_limit:
            self._rounds.put_one(waiting)
        else:
            return False
        self._idle.clear()
        return True

    async def write_late(self, hits: Sequence[Hit]) -> None:
        """Write hits that the spool kept, leaving out those that are stored already. Raises StoreUnavailable."""
        for last in (False, True):
            try:
                outcome = await self._database.write(self._record, hits, True)
            except StoreUnavailable:
                raise
            except IntegrityError as error:  # written by another process since this one looked
                fault: Exception = error
                if not last:
                    continue
            except Exception as error:
                fault = error
            else:
                self.totals.recorded += outcome.recorded
                self.totals.first_clicks += outcome.first_clicks
                self.totals.drained += len(hits)
                if outcome.events:
                    self._on_events()
                return
            break
        if len(hits) > 1:
            for hit in hits:
                await self.write_late([hit])
        else:
            log.error("hit_not_recordable", code=hits[0].code, exc_info=fault)
            self.totals.dropped += 1

    def end_outage(self) -> None:
        """The store takes hits again."""
        self.outage = False
        log.warning("store_back", unrecorded=self.unrecorded)

    async def flush(self) -> None:
        """Return when nothing waits any more."""
        await self._idle.wait()

    async def stop(self, grace: float) -> None:
        """Write what waits, for at most `grace` seconds."""
        try:
            await asyncio.wait_for(self._idle.wait(), grace)
        except TimeoutError:
            log.error("hits_lost_at_shutdown", hits=self.unrecorded)
        await self._rounds.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _look_idle(self) -> None:
        if not (len(self._rounds) or self._rounds.batches or self._aside or self._going):
            self._idle.set()

    async def _write(self, batch: list[_Waiting]) -> None:
        """Write one batch, however long that takes; answer those that still wait."""
        pause = _FIRST_PAUSE
        again = False
        while True:
            try:
                outcome = await self._database.write(self._record_batch, batch, again)
            except StoreUnavailable:
                if not batch:
                    self._rounds.take(batch)
                # The commit may have arrived all the same (a connection lost at the wrong moment): look before writing again.
                again = True
                if self._spool is not None:
                    await self._begin_outage(batch)
            except Exception as error:
                if not any(waiting.spooled for waiting in batch):
                    await self._isolate(batch, error)
                    return
                # The drainer was faster.
                again = True
            else:
                self._done(batch, outcome)
                return
            if not self._shed(batch):
                return
            await asyncio.sleep(pause)  # the store is away
            pause = min(pause * 2, _LONGEST_PAUSE)
            if not self._shed(batch):
                return

    def _shed(self, batch: list[_Waiting]) -> bool:
        """Let go of hits that the spool holds, and of those that nobody could be sent on for: they were never answered and are
        no clicks. Returns whether any are left."""
        batch[:] = [waiting for waiting in batch if not waiting.spooled and not _is_refused(waiting)]
        return bool(batch)

    async def _isolate(self, batch: list[_Waiting], error: Exception) -> None:
        """A fault of ours with one hit must not hold up the others: each goes alone, and the one is let go, loudly."""
        if len(batch) != 1:
            for waiting in batch:
                await self._write([waiting])
            return
        log.error("hit_not_recordable", code=batch[0].hit.code, exc_info=error)
        self.totals.dropped += 1
        await self._send_on([waiting for waiting in batch if not waiting.sent_on])

    def _done(self, batch: list[_Waiting], outcome: Outcome) -> None:
        totals = self.totals
        totals.batches += bool(batch)
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
            overdue = [w for w in self._rounds.all() if w.overdue_at <= now and not w.landing.done() and not w.sent_on]
            if overdue and self._spool is not None:
                await self._begin_outage(self._rounds.taken())
            else:
                await self._send_on(overdue)
            oldest = next((w for w in self._rounds.all() if not w.landing.done() and not w.sent_on), None)
            # Nobody who comes meanwhile is overdue before this one.
            await asyncio.sleep(self._deadline if oldest is None else max(0.005, oldest.overdue_at - loop.time()))

    async def _begin_outage(self, batch: Sequence[_Waiting]) -> None:
        """The store is away, and nobody waits for it any longer. `batch`: what it was given and did not take."""
        if not self.outage:
            self.outage = True
            log.warning("store_outage", unrecorded=self.unrecorded)
        # Those that were sent on already stay: they are in memory because the spool did not take them.
        self._aside.extend(self._rounds.withdraw(lambda waiting: not waiting.sent_on))
        self._wake_aside.set()
        await self._send_on([waiting for waiting in batch if not waiting.sent_on])

    async def _set_aside(self) -> None:
        """Bring the hits of an outage to the spool; those that arrive during a round trip go together with the next one."""
        while True:
            await self._wake_aside.wait()
            self._wake_aside.clear()
            while self._aside:
                self._going = [self._aside.popleft() for _ in range(min(BATCH, len(self._aside)))]
                await self._send_on(self._going, keep=True)
                self._going = []
            self._look_idle()

    async def _send_on(self, waiting: Sequence[_Waiting], *, keep: bool = False) -> None:
        """Send people on without the store's commit: from the cache, else from a plain read; the hits go to the spool.

        `keep`: they are nowhere else in memory."""
        if not waiting:
            return
        for one in waiting:
            one.sent_on = True
        cached = await self._cache.find({one.hit.code for one in waiting})
        known = [one for one in waiting if one.hit.code in cached]
        if known:
            await self._go_on(known, [self._landing(one.hit, cached[one.hit.code]) for one in known], keep)
        if len(known) < len(waiting):
            # Not waited for: a database that hangs must not hold up those that are known.
            self._spawn(self._read_and_go_on([one for one in waiting if one.hit.code not in cached], keep))

    async def _read_and_go_on(self, waiting: Sequence[_Waiting], keep: bool) -> None:
        try:
            landings = await asyncio.wait_for(self._read([one.hit for one in waiting]), self._deadline)
        except (StoreUnavailable, TimeoutError) as error:
            for one in waiting:
                if not one.landing.done():
                    one.landing.set_exception(StoreUnavailable(str(error)))
            return
        await self._go_on(waiting, landings, keep)

    async def _go_on(self, waiting: Sequence[_Waiting], landings: Sequence[Landing], keep: bool) -> None:
        stricter = self._places.special().ip_privacy
        hits: list[Hit] = []
        for one, landing in zip(waiting, landings, strict=True):
            if landing is not UNKNOWN:
                hits.append(one.hit)
                if (privacy := stricter.get(landing.application_id)) is not None:
                    one.hit.address = shorten_address(one.hit.address, privacy)
        spooled = bool(hits) and await self._is_spooled(hits)
        if spooled:
            self.totals.spooled += len(hits)
        elif asyncio.get_running_loop().time() >= self._quiet_until:
            self._quiet_until = asyncio.get_running_loop().time() + _QUIET
            log.warning("redirects_without_the_store", hits=len(hits), unrecorded=self.unrecorded)
        for one, landing in zip(waiting, landings, strict=True):
            one.spooled = spooled or landing is UNKNOWN
            if not one.landing.done():
                one.landing.set_result(landing)
                self.totals.late_answers += 1
        if keep and not spooled:
            room = max(self._waiting_limit - len(self._rounds), 0)
            kept = [one for one in waiting if not one.spooled]
            self._rounds.put(kept[:room])
            self.totals.dropped += len(kept[room:])
            self._idle.clear()

    async def _is_spooled(self, hits: Sequence[Hit]) -> bool:
        try:
            return self._spool is not None and await self._spool.add(hits)
        except Exception:  # a fault of ours with one hit: memory holds them, and the store tells which
            log.exception("hits_not_spoolable")
            return False

    async def _read(self, hits: Sequence[Hit]) -> list[Landing]:
        targets = await self._database.read(queries.find, {hit.code for hit in hits})
        return [self._landing(hit, targets.get(hit.code)) for hit in hits]

    # In the transaction.

    def _record_batch(self, connection: Connection, batch: list[_Waiting], again: bool) -> Outcome:
        if not batch:
            self._rounds.take(batch)
        return self._record(connection, [waiting.hit for waiting in batch], again) if batch else Outcome([])

    def _record(self, connection: Connection, hits: Sequence[Hit], again: bool = False) -> Outcome:
        special = self._places.special()
        late = hits[0].id < self._ids() - LATE
        targets = queries.find(connection, {hit.code for hit in hits})
        known = queries.known_hits(connection, [hit.id for hit in hits]) if again else set()
        outcome = Outcome([])
        real: list[_Real] = []
        for hit in hits:
            target = targets.get(hit.code)
            if target is None or not _on_its_domain(hit, target):
                outcome.landings.append(UNKNOWN)
                continue
            off = self._is_off(target, special)
            outcome.landings.append(self._lead(hit, target, off, special))
            if hit.id not in known:
                real.append((hit, target, off))
        if not real:
            return outcome
        if special.circumstances:
            self._judge_circumstances(connection, real, special.circumstances)

        # The first person on each link of each message. `hits` is in order of arrival.
        claims: dict[int, queries.Claim] = {}
        seen: dict[int, Target] = {}
        first_on_link: dict[int, int] = {}  # link -> hit
        for hit, target, off in real:
            bit = 1 << target.position
            if hit.verdict is not Verdict.HUMAN or target.clicked_links & bit or off or hit.at >= target.expires_at:
                continue
            if first_on_link.setdefault(target.link_id, hit.id) == hit.id:
                seen[target.message] = target
                claim = claims.get(target.message)
                claims[target.message] = (
                    queries.Claim(target.message, hit.at, hit.id, bit) if claim is None else claim._replace(bits=claim.bits | bit)
                )
        won = queries.claim(connection, list(claims.values()), seen) if claims else {}

        hit_rows: list[HitRow] = []
        event_rows: list[EventRow] = []
        tally = Tally()
        late_clicks: list[tuple[int, int, int, str]] = []
        stricter, with_suspected = special.ip_privacy, special.with_suspected
        for hit, target, off in real:
            flags = _OFF if off else 0
            topics = 0
            data: str | None = None
            if hit.at >= target.expires_at:
                flags |= _LATE
                tally.add(target.cohort_id, hit.at, "late_hits")
                if hit.verdict is Verdict.HUMAN and not off:
                    topics = _LATE_CLICK
            elif hit.verdict is Verdict.SUSPECTED:
                tally.add(target.cohort_id, hit.at, "suspected_hits")
                if target.application_id in with_suspected and not off:
                    topics = _SUSPECTED_CLICK
            elif hit.verdict is Verdict.IGNORED:
                tally.add(target.cohort_id, hit.at, "ignored_hits")
            elif not off:
                tally.add(target.cohort_id, hit.at, "clicks")
                if late:
                    late_clicks.append((hit.id, target.cohort_id, hit.at, hit.user_agent))
                bits, previous = won.get(target.message, (0, None))
                if first_on_link.get(target.link_id) == hit.id and bits & 1 << target.position:
                    flags, topics = _FIRST_FOR_LINK, _CLICK
                    if previous is not None and claims[target.message].hit_id == hit.id:
                        flags |= _FIRST_FOR_MESSAGE
                        topics |= _STATE
                        data = _MOVED[previous]
                        outcome.first_clicks += 1
                        tally.add(target.cohort_id, hit.at, "clicked_messages")
                        seconds = (hit.at - (target.sent_at or target.created_at)) / 1000
                        tally.add(target.cohort_id, hit.at, f"ttc:{time_to_click_bucket(seconds)}")
                elif target.flags & _EVERY_CLICK:
                    topics = _CLICK
            address, user_agent = hit.address, hit.user_agent
            if not target.url:  # its message was erased, and stays so
                address = user_agent = ""
            elif stricter and (privacy := stricter.get(target.application_id)) is not None:
                address = shorten_address(address, privacy)
            hit_rows.append((hit.id, target.link_id, hit.at, int(hit.verdict), hit.rule, flags, address, user_agent))
            if topics:
                event_rows.append(
                    (
                        hit.id if topics & _STATE else self._ids(),  # schema.OTHER_EVENTS
                        target.application_id,
                        topics,
                        hit.at,
                        target.message,
                        target.link_id,
                        hit.id,
                        data,
                        False,
                    )
                )
        queries.insert_hits(connection, hit_rows)
        if event_rows:
            queries.insert_events(connection, event_rows)
        if late_clicks:
            count_late(connection, tally, late_clicks)
        tallies.append(connection, self._ids(), tally)
        outcome.recorded = len(hit_rows)
        outcome.events = len(event_rows)
        return outcome

    def _judge_circumstances(
        self, connection: Connection, real: Sequence[_Real], settings: Mapping[int, ApplicationSettings]
    ) -> None:
        """Judge people's hits by their circumstances too, for the applications that chose so."""
        mine = [
            (hit, target, chosen, from_ms(hit.at))
            for hit, target, _ in real
            if hit.verdict is Verdict.HUMAN and (chosen := settings.get(target.application_id)) is not None
        ]
        watched = {target.message for _, target, chosen, _ in mine if chosen.all_links_within_second}
        links = queries.count_links(connection, watched) if watched else {}
        for _, target, _, at in mine:
            if target.message in links:
                self._links.note(target.message, target.link_id, at)
        for hit, target, chosen, at in mine:
            recipients = 0
            if hit.origin and chosen.max_recipients_per_address_minute is not None:
                recipients = self._addresses.count((target.application_id, hit.origin), target.message, at)
            facts = Facts(
                at,
                sent_at=None if target.sent_at is None else from_ms(target.sent_at),
                delivered_at=None if target.delivered_at is None else from_ms(target.delivered_at),
                recipients_of_address=recipients,
                links_of_message=links.get(target.message, 0),
                opened_at=self._links.opened_at(target.message),
            )
            if judgement := judge_circumstance(chosen, facts):
                hit.verdict, hit.rule = judgement.verdict, judgement.rule

    def _is_off(self, target: Leads, special: Special) -> bool:
        return (
            target.disabled_at is not None
            or self._places.disabled(target.application_id, target.domain_id)
            or (bool(special.blocked_hosts) and special.blocks(target.application_id, target.location or target.url))
        )

    def _landing(self, hit: Hit, target: Leads | None) -> Landing:
        if target is None or not _on_its_domain(hit, target):
            return UNKNOWN
        special = self._places.special()
        return self._lead(hit, target, self._is_off(target, special), special)

    def _lead(self, hit: Hit, target: Leads, off: bool, special: Special) -> Landing:
        if off:
            return Landing(None, target.application_id, gone=True, off=True)
        if hit.at >= target.expires_at:
            fallback = target.fallback_url or self._places.fallback(target.application_id, target.domain_id)
            if fallback and special.blocks(target.application_id, fallback):
                fallback = None
            return Landing(fallback.encode() if fallback else None, target.application_id, gone=True)
        location = (target.location or target.url).encode()
        if target.flags & _FILL:
            location = fill(location, {"click_id": self._click_ids.spell(hit.id)})
        if target.flags & _APPEND:
            name = self._places.click_id_param(target.application_id)
            if name:
                location = append_param(location, name, self._click_ids.spell(hit.id))
        return Landing(location, target.application_id)


#: A hit on a link that exists, and whether that is switched off.
_Real = tuple[Hit, Target, bool]


def _is_refused(waiting: _Waiting) -> bool:
    landing = waiting.landing
    return landing.done() and not landing.cancelled() and landing.exception() is not None


def _on_its_domain(hit: Hit, target: Leads) -> bool:
    return hit.domain_id is None or hit.domain_id == target.domain_id


#: Buckets of time to click grow by 5 %, so a percentile read from them is right within 2.5 %.
_GROWTH = math.log(1.05)


def time_to_click_bucket(seconds: float) -> int:
    """The bucket of a time to click: 0 up to one second, then one more for every 5 %."""
    return 0 if seconds <= 1 else 1 + int(math.log(seconds) / _GROWTH)


def time_to_click_seconds(bucket: int) -> float:
    """The middle of a bucket, in seconds."""
    return 0.5 if bucket == 0 else math.exp((bucket - 0.5) * _GROWTH)
