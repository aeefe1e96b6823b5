"""Judging again: stored hits get another verdict, when the rules have changed or more is known of what happened around them.

A hit is judged by its stored agent (the rules of today), then by the circumstances that its application chose, now with what came
after it: everybody whose links its address opened within a minute, every link of its message that was opened within a second,
delivery reports that came late. What is not stored cannot be judged again: HEAD requests and prefetches stay ignored; an address
is known only as far as it was kept, so that "one address" may be a network of 256. Hits of erased messages are left alone, and
first clicks that lost their agent when their retention was over (purge.py).

Nothing is deleted. A hit keeps what it was judged as first (`first_verdict`, `first_rule`); the counts follow.

What was told is another matter. A click that raised an event (the first of its link, or any of a link that tells every click) is
changed only where the application has `retract_clicks` on; elsewhere it stays what it was told as. With it on, first clicks are
what the hits say, as they are judged now:

- A click that was told and turns out to be no person's raises one `click_retracted`. If it was the message's first click, the
  message goes back to the state before it, or to a later one that was reported since.
- The next person's click counts instead: the earliest that is there already, which then raises the event of a first click with its
  own time; else the next one that comes.
- A hit that turns out to be a person's is a click from then on, and the first one if there is none; then it raises that event too.
- A first click that stands is left alone, even if an earlier hit turns out to be a person's.

Verdicts are changed first, some at a time (correction.py), and then the messages without a first click are given one: a person's
click beside a machine's is not mistaken for the next one because the run came to it later. A run may be cut off at any point and
repeated. On PostgreSQL, a click that was looked up before its message was given back and is written after it is nobody's first one;
the job finds it when it comes to it, some minutes later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, or_, select

from shortener.accounts.directory import Directory
from shortener.accounts.settings import ApplicationSettings
from shortener.clicks.device_counts import LAG_MS, DeviceCounter
from shortener.clicks.verdicts.contextual_rules import MINUTE, SECOND, HitContext, RecentAddresses, RecentLinks, classify_by_context
from shortener.clicks.verdicts.correction import CorrectionResult, VerdictChange, apply_changes, assign_first_clicks
from shortener.clicks.verdicts.request_rules import Classification, RequestTraits, classify
from shortener.ids import IdGenerator, first_id_at
from shortener.metrics import Metrics
from shortener.model import HitFlag, Verdict
from shortener.storage.database import Database, upsert
from shortener.storage.schema import first_clicks, hits, installation, links, messages
from shortener.storage.types import from_ms, to_ms

PAGE_HITS = 1000  # hits that are read at once
BATCH_CHANGES = 100  # changes of one transaction
#: The newest hits are left for later: their evidence is not complete, and they are not yet counted by device.
DELAY = timedelta(milliseconds=LAG_MS) + MINUTE
INTERVAL = timedelta(seconds=30)  # the job's steps through time
MAX_LOOKBACK = timedelta(hours=1)  # how far the job looks back after it stood still
_ADDRESS_RULE = "many_recipients"


@dataclass(slots=True)
class ReclassifyResult:
    """What a run did, or would have done. `hits`: looked at; `until`: those that came later were left alone."""

    hits: int = 0
    done: CorrectionResult = field(default_factory=CorrectionResult)
    until: datetime | None = None


class Reclassifier:
    """`on_events` is called when a commit wrote some."""

    def __init__(
        self, database: Database, directory: Directory, ids: IdGenerator, devices: DeviceCounter, on_events: Callable[[], None]
    ) -> None:
        self._database = database
        self._directory = directory
        self._ids = ids
        self._devices = devices
        self._on_events = on_events
        self.total = CorrectionResult()

    def register_metrics(self, metrics: Metrics) -> None:
        """Show the totals on /metrics."""
        total = self.total
        metrics.counter(
            "shortener_verdicts_changed",
            "Hits that later evidence gave another verdict.",
            lambda: {("suspected",): total.to_suspected, ("human",): total.to_human},
            "verdict",
        )
        metrics.counter("shortener_clicks_retracted", "Clicks that were told and taken back.", lambda: total.retracted)

    async def step(self, now: datetime) -> int:
        """The job: judge again what happened since the last step, for applications that take clicks back. Returns how many verdicts
        changed. Raises StoreUnavailable."""
        mine = [application.id for application in self._directory.applications() if application.settings.retract_clicks]
        if not mine:
            return 0
        until = now - DELAY
        reached = await self._database.read(_reached)
        if reached is not None and until - reached < INTERVAL:
            return 0
        run = await self.run(max(reached or until, until - MAX_LOOKBACK), until, now, applications=mine)
        await self._database.write(_reach, until)
        return run.done.to_suspected + run.done.to_human

    async def run(
        self,
        since: datetime,
        until: datetime,
        now: datetime,
        *,
        applications: Collection[int] | None = None,
        dry_run: bool = False,
        progress: Callable[[datetime], None] = lambda reached: None,
    ) -> ReclassifyResult:
        """Judge the hits from `since` to `until` again, of all applications if not said otherwise. `progress` is told how far it
        is. `dry_run`: make every change and take it back, without first clicks. Raises StoreUnavailable: what was done stands."""
        await self._devices.catch_up(to_ms(now))
        until = min(until, now - DELAY)
        told = ReclassifyResult(until=until)
        walk = _Walk({one.id: one.settings for one in self._directory.applications()}, since, until)
        changes: list[VerdictChange] = []
        async for page in self._pages(since - MINUTE, until + MINUTE, applications):
            changes += walk.see(page)
            while len(changes) >= BATCH_CHANGES:
                await self._correct(changes[:BATCH_CHANGES], now, dry_run, told.done)
                del changes[:BATCH_CHANGES]
            progress(min(max(page[-1].at, since), until))
        changes += walk.rest()
        for start in range(0, len(changes), BATCH_CHANGES):
            await self._correct(changes[start : start + BATCH_CHANGES], now, dry_run, told.done)
        told.hits = walk.judged
        if not dry_run:
            unsettled = sorted({*told.done.unsettled, *walk.unsettled})
            for start in range(0, len(unsettled), BATCH_CHANGES):
                some = unsettled[start : start + BATCH_CHANGES]
                await self._rest_after(self._database.write(assign_first_clicks, some, self._ids), told.done)
            self.total.add(told.done)
        progress(until)
        return told

    async def _correct(self, changes: Sequence[VerdictChange], now: datetime, dry_run: bool, total: CorrectionResult) -> None:
        await self._rest_after(apply_changes(self._database, changes, self._ids, now, dry_run=dry_run), total)

    async def _rest_after(self, work: Awaitable[CorrectionResult], total: CorrectionResult) -> None:
        """Do the work, then rest as long as it took: clicks are waiting for the same store."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        done = await work
        total.add(done)
        if done.events:
            self._on_events()
        await asyncio.sleep(loop.time() - began)  # clicks have the store for as long

    async def _pages(
        self, since: datetime, until: datetime, applications: Collection[int] | None
    ) -> AsyncIterator[list[_HitToClassify]]:
        after, end = first_id_at(to_ms(since)) - 1, first_id_at(to_ms(until))
        while True:
            page, last = await self._database.read(_page, after, end, applications)
            if last is None:
                return
            if page:
                yield page
            after = last


@dataclass(slots=True)
class _HitToClassify:
    """A stored hit, what is known of its message, and what speaks against it."""

    id: int
    link: int
    at: datetime
    verdict: int
    rule: str
    flags: int
    address: str
    user_agent: str
    message: int
    application: int
    position: int
    sent_at: datetime | None
    delivered_at: datetime | None
    clicked_links: int
    links: int  # of the message
    judgement: Classification
    recipients: int = 0
    opened_at: Collection[datetime] = ()


class _PendingHits:
    """Hits that wait for their judgement, by what they have in common, oldest first."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, deque[_HitToClassify]] = {}

    def add(self, key: Hashable, hit: _HitToClassify) -> None:
        self._groups.setdefault(key, deque()).append(hit)

    def take(self, key: Hashable) -> deque[_HitToClassify]:
        """The whole group; none of it is waiting here any more."""
        return self._groups.pop(key)

    def leave(self, key: Hashable, hit: _HitToClassify) -> None:
        """The hit is judged: if it is still here, it is the first of its group."""
        group = self._groups.get(key)
        if group and group[0] is hit:
            group.popleft()
            if not group:
                del self._groups[key]


class _Walk:
    """Goes through hits in the order of their ids, and judges each when everything is seen that came within a minute after it."""

    def __init__(self, settings: Mapping[int, ApplicationSettings], since: datetime, until: datetime) -> None:
        self._settings = settings
        self._since = since
        self._until = until
        self._waiting: deque[_HitToClassify] = deque()
        self._addresses = RecentAddresses()
        self._links = RecentLinks()
        self._of_address = _PendingHits()
        self._of_message = _PendingHits()
        self.judged = 0
        self.unsettled: list[int] = []  # messages with a person's click that nobody counted as a first one

    def see(self, page: Sequence[_HitToClassify]) -> list[VerdictChange]:
        """The changes that are known now."""
        changes: list[VerdictChange] = []
        for hit in page:
            if hit.application not in self._settings:
                continue  # made since the directory was read
            self._waiting.append(hit)
            if hit.judgement.verdict is Verdict.HUMAN:
                self._gather(hit, self._settings[hit.application])
            while self._waiting[0].at <= hit.at - MINUTE:
                changes += self._leave(self._waiting.popleft())
        return changes

    def rest(self) -> list[VerdictChange]:
        """The changes of what is left, when there is nothing more to see."""
        changes: list[VerdictChange] = []
        while self._waiting:
            changes += self._leave(self._waiting.popleft())
        return changes

    def _gather(self, hit: _HitToClassify, settings: ApplicationSettings) -> None:
        """What this hit says about itself and those before it."""
        most = settings.max_recipients_per_address_minute
        if most is not None and hit.address:
            address = (hit.application, hit.address)
            self._of_address.add(address, hit)
            recipients = self._addresses.count(address, hit.message, hit.at)
            if recipients > most:
                for one in self._of_address.take(address):
                    if one.at > hit.at - MINUTE:
                        one.recipients = recipients
        if settings.all_links_within_second and hit.links > 1:
            self._of_message.add(hit.message, hit)
            self._links.add(hit.message, hit.link, hit.at)
            opened_at = tuple(self._links.opened_at(hit.message))
            if len(opened_at) == hit.links and max(opened_at) - min(opened_at) <= SECOND:
                for one in self._of_message.take(hit.message):
                    if one.at >= min(opened_at):
                        one.opened_at = opened_at

    def _leave(self, hit: _HitToClassify) -> Sequence[VerdictChange]:
        self._of_address.leave((hit.application, hit.address), hit)
        self._of_message.leave(hit.message, hit)
        if not self._since <= hit.at < self._until:
            return ()
        self.judged += 1
        settings = self._settings[hit.application]
        judgement = self._judge(hit, settings)
        if judgement is None:
            return ()
        if judgement.verdict != hit.verdict:
            retracts = settings.retract_clicks
            return (VerdictChange(hit.id, hit.message, Verdict(hit.verdict), judgement.verdict, judgement.rule, retracts),)
        is_click = judgement.verdict is Verdict.HUMAN and not hit.flags & (HitFlag.LATE | HitFlag.DISABLED)
        if settings.retract_clicks and is_click and not hit.clicked_links & 1 << hit.position:
            self.unsettled.append(hit.message)
        return ()

    def _judge(self, hit: _HitToClassify, settings: ApplicationSettings) -> Classification | None:
        """None: more was known when the hit came."""
        if hit.judgement.verdict is not Verdict.HUMAN or not settings.uses_contextual_rules:
            return hit.judgement
        if hit.rule == _ADDRESS_RULE and settings.max_recipients_per_address_minute is not None:
            return None  # the address is not stored in full
        facts = HitContext(
            hit.at,
            # A SENT later than the click tells when it was written down.
            sent_at=hit.sent_at if hit.sent_at is not None and hit.sent_at <= hit.at else None,
            delivered_at=hit.delivered_at,
            recipients_of_address=hit.recipients,
            links_of_message=hit.links,
            opened_at=hit.opened_at,
        )
        return classify_by_context(settings, facts) or hit.judgement


_COLUMNS = (
    hits.c.id,
    hits.c.link_id.label("link"),
    hits.c.at,
    hits.c.verdict,
    hits.c.rule,
    hits.c.flags,
    hits.c.address,
    hits.c.user_agent,
    links.c.message_id.label("message"),
    links.c.application_id.label("application"),
    links.c.position,
    messages.c.sent_at,
    messages.c.delivered_at,
    func.coalesce(first_clicks.c.links, 0).label("clicked_links"),
)
_siblings = links.alias("siblings")
_LINKS = select(func.count()).where(_siblings.c.message_id == links.c.message_id).scalar_subquery().label("links")


def _page(
    connection: Connection, after: int, end: int, applications: Collection[int] | None
) -> tuple[list[_HitToClassify], int | None]:
    """The hits among the next PAGE ids that can be judged again, and the last of those ids; None when there are no more."""
    next_ids = select(hits.c.id).where(hits.c.id > after, hits.c.id < end).order_by(hits.c.id).limit(PAGE_HITS).subquery()
    last: int | None = connection.execute(select(func.max(next_ids.c.id))).scalar()
    if last is None:
        return [], None
    statement = (
        select(*_COLUMNS, _LINKS)
        .join_from(hits, links, links.c.id == hits.c.link_id)
        .join(messages, messages.c.id == links.c.message_id)
        .outerjoin(first_clicks, first_clicks.c.id == messages.c.id)
        .where(hits.c.id > after, hits.c.id <= last)
        .where(hits.c.verdict != Verdict.IGNORED.value, messages.c.to_address != "")
        # A person's hit without an agent had one when it was judged.
        .where(or_(hits.c.verdict != Verdict.HUMAN.value, hits.c.user_agent != ""))
        .order_by(hits.c.id)
    )
    if applications is not None:
        statement = statement.where(links.c.application_id.in_(applications))
    rows = connection.execute(statement).mappings()
    return [_HitToClassify(**row, judgement=classify(RequestTraits("GET", row["user_agent"]))) for row in rows], last


_ROW = installation.c.name == "rejudged"


def _reached(connection: Connection) -> datetime | None:
    value: str | None = connection.execute(select(installation.c.value).where(_ROW)).scalar()
    return None if value is None else from_ms(int(value))


def _reach(connection: Connection, until: datetime) -> None:
    row = upsert(connection, installation).values(name="rejudged", value=str(to_ms(until)))
    connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": row.excluded.value}))
