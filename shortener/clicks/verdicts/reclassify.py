"""The reclassification gives stored hits a new verdict when the rules have changed or more evidence exists.

A hit is classified by its stored user agent with the current request rules, and then by the contextual rules of its application.
These rules now also see later evidence: all recipients whose links the client address opened within a minute, all links of the
message that were opened within a second, and delivery reports that arrived late. If the application stores addresses in short
form, an address stands for a network of 256 addresses.

Only stored data can be used. Therefore some hits keep their verdict:

- HEAD requests and prefetches stay ignored.
- Hits on erased messages do not change.
- First clicks whose user agent was removed after its retention time do not change.
- A hit whose client got the confirmation page does not change, because only the press of the button is a click. The press keeps
  its verdict too.

No hit is deleted. A hit keeps its first verdict (`first_verdict`, `first_rule`), and the counts are corrected.

A click may have been sent to trackers: the first click on a link, or any click on a link that sends every click. Such a click
changes only if its application has the setting `retract_clicks` on. With this setting, first clicks follow the current verdicts:

- A sent click that is no longer HUMAN creates one event `click_retracted`. If the click was the first click on its message, the
  message returns to the state that it had before the click, or to a state that was reported later.
- The next click of a person becomes the first click. If this click is already stored, an event of a first click is created with
  the time of this click.
- A hit that becomes HUMAN counts as a click. If its link or message has no first click, the hit becomes the first click, and the
  event of a first click is created.
- A correct first click stays the first click, even if an earlier hit becomes HUMAN.

A run first changes verdicts in batches (`correction.py`). Then it assigns first clicks to messages without one. In this order, no
hit becomes a first click before its new verdict is stored. A run may be interrupted at any point and repeated. On PostgreSQL, a
click that is recorded during a correction of its message is sometimes not recognised as the first click. The job makes it the first
click some minutes later.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, or_, select

from shortener.accounts.directory import Directory
from shortener.accounts.settings import ApplicationSettings
from shortener.clicks.device_counts import LAG_MS, DeviceCounter
from shortener.clicks.hit_metrics import GOT_NO_PAGE
from shortener.clicks.networks import HOSTING_RULE
from shortener.clicks.resolver import CONFIRMED
from shortener.clicks.verdicts.contextual_rules import (
    MANY_RECIPIENTS,
    MINUTE,
    SECOND,
    HitContext,
    RecentAddresses,
    RecentLinks,
    classify_by_context,
    sent_at_before,
)
from shortener.clicks.verdicts.correction import CorrectionResult, VerdictChange, apply_changes, assign_first_clicks
from shortener.clicks.verdicts.request_rules import Classification, RequestTraits, classify
from shortener.ids import IdGenerator, first_id_at
from shortener.metrics import Metrics
from shortener.model import HitFlag, Verdict, mutable_record
from shortener.storage.database import Database, upsert
from shortener.storage.schema import first_clicks, hits, installation, links, messages
from shortener.storage.types import from_ms, to_ms

PAGE_HITS = 1000
BATCH_CHANGES = 100  # maximum number of changes in one transaction
#: The minimum age of the hits that a run examines. For newer hits, the evidence is incomplete, and the device job has not counted
#: them yet.
DELAY = timedelta(milliseconds=LAG_MS) + MINUTE
INTERVAL = timedelta(seconds=30)  # time between two runs of the job
# The maximum age of the hits that the job examines, even if the process was stopped for longer.
MAX_LOOKBACK = timedelta(hours=1)


@mutable_record
class ReclassifyResult:
    """The changes that a run has made, or would have made in a dry run. `hits` is the number of examined hits. `until` is the
    time up to which hits were examined."""

    hits: int = 0
    corrections: CorrectionResult = dataclasses.field(default_factory=CorrectionResult)
    until: datetime | None = None


class Reclassifier:
    """A job that classifies stored hits again. `on_events` is called after a commit that wrote events. Events that are older than
    `event_retention_days` may already be purged."""

    def __init__(
        self,
        database: Database,
        directory: Directory,
        ids: IdGenerator,
        devices: DeviceCounter,
        on_events: Callable[[], None],
        event_retention_days: int,
    ) -> None:
        self._database = database
        self._directory = directory
        self._ids = ids
        self._devices = devices
        self._on_events = on_events
        self._event_retention = timedelta(days=event_retention_days)
        self.total = CorrectionResult()

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the metrics that show the totals of the reclassification job."""
        total = self.total
        metrics.counter(
            "shortener_verdicts_changed",
            "Hits whose verdict was changed by a reclassification.",
            lambda: {("suspected",): total.to_suspected, ("human",): total.to_human},
            "verdict",
        )
        metrics.counter(
            "shortener_clicks_retracted", "Clicks that were sent to trackers and retracted later.", lambda: total.retracted
        )

    async def step(self, now: datetime) -> int:
        """Run the job once: reclassify the hits since the previous step, for applications with the setting `retract_clicks`.

        Return the number of changed verdicts. Raise StoreUnavailable if the database is unavailable."""
        retracting = [application.id for application in self._directory.applications() if application.settings.retract_clicks]
        if not retracting:
            return 0
        until = now - DELAY
        reached = await self._database.read(_read_position)
        # the clock was ahead in the previous step, so the last hour is examined again
        if reached is not None and reached > until:
            reached = until - MAX_LOOKBACK
        if reached is not None and until - reached < INTERVAL:
            return 0
        result = await self.run(max(reached or until, until - MAX_LOOKBACK), until, now, applications=retracting)
        await self._database.write(_store_position, until)
        return result.corrections.to_suspected + result.corrections.to_human

    async def run(
        self,
        since: datetime,
        until: datetime,
        now: datetime,
        *,
        applications: Collection[int] | None = None,
        settings: Mapping[int, ApplicationSettings] | None = None,
        dry_run: bool = False,
        progress: Callable[[datetime], None] = lambda reached: None,
    ) -> ReclassifyResult:
        """Reclassify the hits from `since` to `until`.

        `applications` contains application ids; None selects all. `settings` contains settings by application id, which are used
        instead of the stored ones. If `dry_run` is true, roll back every change, and assign no first clicks. `progress` is called
        with the time up to which hits were examined.

        Raise StoreUnavailable if the database becomes unavailable. The changes that are already committed remain."""
        await self._devices.catch_up()
        until = min(until, now - DELAY)
        result = ReclassifyResult(until=until)
        stored = {one.id: one.settings for one in self._directory.applications()}
        evidence = _EvidenceWindow({**stored, **(settings or {})}, since, until)
        changes: list[VerdictChange] = []
        async for page in self._pages(since - MINUTE, until + MINUTE, applications):
            changes += evidence.add(page)
            while len(changes) >= BATCH_CHANGES:
                await self._correct(changes[:BATCH_CHANGES], now, dry_run, result.corrections)
                del changes[:BATCH_CHANGES]
            progress(min(max(page[-1].at, since), until))
        changes += evidence.finish()
        for start in range(0, len(changes), BATCH_CHANGES):
            await self._correct(changes[start : start + BATCH_CHANGES], now, dry_run, result.corrections)
        result.hits = evidence.classified
        if not dry_run:
            oldest = self._oldest_event(now)
            unsettled = sorted({*result.corrections.unsettled, *evidence.unsettled})
            for start in range(0, len(unsettled), BATCH_CHANGES):
                batch = unsettled[start : start + BATCH_CHANGES]
                await self._run_with_pause(self._database.write(assign_first_clicks, batch, self._ids, oldest), result.corrections)
            # The messages in `unsettled` now have their first clicks. The total leaves out this list, because the list would only
            # grow.
            self.total.add(dataclasses.replace(result.corrections, unsettled=[]))
        progress(until)
        return result

    async def _correct(self, changes: Sequence[VerdictChange], now: datetime, dry_run: bool, total: CorrectionResult) -> None:
        oldest = self._oldest_event(now)
        await self._run_with_pause(
            apply_changes(self._database, changes, self._ids, now, oldest_event=oldest, dry_run=dry_run), total
        )

    def _oldest_event(self, now: datetime) -> int:
        """Return the smallest id that an event within the event retention can have. Events with a smaller id may already be
        purged."""
        return first_id_at(to_ms(now - self._event_retention))

    async def _run_with_pause(self, work: Awaitable[CorrectionResult], total: CorrectionResult) -> None:
        """Await `work`. Then pause for as long as it took, so that clicks can use the database for half of the time."""
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        result = await work
        total.add(result)
        if result.events:
            self._on_events()
        await asyncio.sleep(loop.time() - started_at)  # pause, so that clicks can use the database

    async def _pages(
        self, since: datetime, until: datetime, applications: Collection[int] | None
    ) -> AsyncIterator[list[_HitToClassify]]:
        after, end = first_id_at(to_ms(since)) - 1, first_id_at(to_ms(until))
        while True:
            page, last = await self._database.read(read_page, after, end, applications)
            if last is None:
                return
            if page:
                yield page
            after = last


@mutable_record
class _HitToClassify:
    """A stored hit with its message, its classification by the request rules, and the evidence for the contextual rules."""

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
    read_at: datetime | None
    clicked_links: int
    links: int  # number of links in the message
    classification: Classification
    recipients: int = 0
    opened_at: Collection[datetime] = ()


class _PendingHits:
    """Hits that are not classified yet, in groups. The key of a group is a client address or a message. In each group, the oldest
    hit comes first."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, deque[_HitToClassify]] = {}

    def add(self, key: Hashable, hit: _HitToClassify) -> None:
        self._groups.setdefault(key, deque()).append(hit)

    def pop(self, key: Hashable) -> deque[_HitToClassify]:
        """Remove a group and return its hits."""
        return self._groups.pop(key)

    def discard(self, key: Hashable, hit: _HitToClassify) -> None:
        """Remove a hit from its group if the group still contains it. The hit must be the oldest one in its group."""
        group = self._groups.get(key)
        if group and group[0] is hit:
            group.popleft()
            if not group:
                del self._groups[key]


class _EvidenceWindow:
    """A moving window over the hits, in the order of their ids. A hit is classified when all hits of the minute after it were
    added."""

    def __init__(self, settings: Mapping[int, ApplicationSettings], since: datetime, until: datetime) -> None:
        self._settings = settings
        self._since = since
        self._until = until
        self._waiting: deque[_HitToClassify] = deque()
        self._addresses = RecentAddresses()
        self._links = RecentLinks()
        self._of_address = _PendingHits()
        self._of_message = _PendingHits()
        self.classified = 0
        self.unsettled: list[int] = []  # row ids of messages that have a click by a human but no first click

    def add(self, page: Sequence[_HitToClassify]) -> list[VerdictChange]:
        """Add a page of hits. Some hits then have complete evidence; return the changes of their verdicts."""
        changes: list[VerdictChange] = []
        for hit in page:
            if hit.application not in self._settings:
                continue  # the application is so new that the directory does not contain it yet
            self._waiting.append(hit)
            if hit.classification.verdict is Verdict.HUMAN and hit.rule != CONFIRMED:
                self._collect_evidence(hit, self._settings[hit.application])
            while self._waiting[0].at <= hit.at - MINUTE:
                changes += self._finish_hit(self._waiting.popleft())
        return changes

    def finish(self) -> list[VerdictChange]:
        """Return the changes for the remaining hits. Call this when no more hits follow."""
        changes: list[VerdictChange] = []
        while self._waiting:
            changes += self._finish_hit(self._waiting.popleft())
        return changes

    def _collect_evidence(self, hit: _HitToClassify, settings: ApplicationSettings) -> None:
        """Use this hit as evidence for its own classification, and for the classification of earlier hits."""
        limit = settings.max_recipients_per_address_minute
        if limit is not None and hit.address:
            address = (hit.application, hit.address)
            self._of_address.add(address, hit)
            recipients = self._addresses.count(address, hit.message, hit.at)
            if recipients > limit:
                for earlier in self._of_address.pop(address):
                    if earlier.at > hit.at - MINUTE:
                        earlier.recipients = recipients
        if settings.all_links_within_second and hit.links > 1:
            self._of_message.add(hit.message, hit)
            self._links.add(hit.message, hit.link, hit.at)
            opened_at = tuple(self._links.opened_at(hit.message))
            if len(opened_at) == hit.links and max(opened_at) - min(opened_at) <= SECOND:
                for earlier in self._of_message.pop(hit.message):
                    if earlier.at >= min(opened_at):
                        earlier.opened_at = opened_at

    def _finish_hit(self, hit: _HitToClassify) -> Sequence[VerdictChange]:
        self._of_address.discard((hit.application, hit.address), hit)
        self._of_message.discard(hit.message, hit)
        if not self._since <= hit.at < self._until:
            return ()
        self.classified += 1
        settings = self._settings[hit.application]
        classification = self._classify(hit, settings)
        if classification is None:
            return ()
        if classification.verdict != hit.verdict:
            retracts = settings.retract_clicks
            return (
                VerdictChange(hit.id, hit.message, Verdict(hit.verdict), classification.verdict, classification.rule, retracts),
            )
        is_click = classification.verdict is Verdict.HUMAN and not hit.flags & (HitFlag.LATE | HitFlag.DISABLED)
        if settings.retract_clicks and is_click and not hit.clicked_links & 1 << hit.position:
            self.unsettled.append(hit.message)
        return ()

    def _classify(self, hit: _HitToClassify, settings: ApplicationSettings) -> Classification | None:
        """Return the new classification of a hit. Return None if the hit must keep its old classification, because that one
        used data that is not stored."""
        if hit.classification.verdict is not Verdict.HUMAN or hit.rule == CONFIRMED or not settings.uses_contextual_rules:
            return hit.classification
        if hit.rule == MANY_RECIPIENTS and settings.max_recipients_per_address_minute is not None:
            return None  # the recorder classified the hit by the full IP address, which is not stored
        context = HitContext(
            hit.at,
            sent_at=sent_at_before(hit.at, hit.sent_at),
            delivered_at=hit.delivered_at,
            is_reported=(hit.sent_at, hit.delivered_at, hit.read_at) != (None, None, None),
            recipients_of_address=hit.recipients,
            links_of_message=hit.links,
            opened_at=hit.opened_at,
        )
        return classify_by_context(settings, context) or hit.classification


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
    messages.c.read_at,
    func.coalesce(first_clicks.c.links, 0).label("clicked_links"),
)
_siblings = links.alias("siblings")
_LINKS = select(func.count()).where(_siblings.c.message_id == links.c.message_id).scalar_subquery().label("links")


def read_page(
    connection: Connection, after: int, end: int, applications: Collection[int] | None
) -> tuple[list[_HitToClassify], int | None]:
    """Read the next PAGE_HITS hits in the order of their ids. Return the hits among them that can be reclassified, and the last
    id of the page. The last id is None if there are no more hits."""
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
        .where(hits.c.verdict != Verdict.IGNORED.value, hits.c.rule != HOSTING_RULE, messages.c.to_address != "")
        .where(GOT_NO_PAGE)
        # A HUMAN hit without a user agent is left out, because the purge has removed its user agent. A confirmed click is the
        # exception: it can have arrived without a user agent.
        .where(or_(hits.c.verdict != Verdict.HUMAN.value, hits.c.user_agent != "", hits.c.rule == CONFIRMED))
        .order_by(hits.c.id)
    )
    if applications is not None:
        statement = statement.where(links.c.application_id.in_(applications))
    rows = connection.execute(statement).mappings()
    return [_HitToClassify(**row, classification=_classify_request(row["rule"], row["user_agent"])) for row in rows], last


def _classify_request(rule: str, user_agent: str) -> Classification:
    """Return the classification of a stored hit by the request rules. A click that a person has confirmed stays HUMAN."""
    if rule == CONFIRMED:
        return Classification(Verdict.HUMAN, CONFIRMED, "a person pressed the button of the confirmation page")
    return classify(RequestTraits("GET", user_agent))


# The key of the stored position of the job, which is in milliseconds since 1970. The key is the former name of the job.
_POSITION_NAME = "rejudged"
_ROW = installation.c.name == _POSITION_NAME


def _read_position(connection: Connection) -> datetime | None:
    value: str | None = connection.execute(select(installation.c.value).where(_ROW)).scalar()
    return None if value is None else from_ms(int(value))


def _store_position(connection: Connection, until: datetime) -> None:
    row = upsert(connection, installation).values(name=_POSITION_NAME, value=str(to_ms(until)))
    connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": row.excluded.value}))
