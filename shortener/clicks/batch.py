"""One transaction of hits: what becomes of a batch in the database.

A batch costs the same handful of statements whatever its size: one look-up of all codes, one conditional update that takes the
first clicks nobody took, one insert of hits, one of events, one row of what is counted.

Promises. Of all people's hits on a link, and on a message, one is the first, whatever else runs; it raises the event. Every hit on
a link that exists is kept, also a machine's, a late one and one on what was switched off; those are no clicks. A batch whose first
commit may have arrived is written `again`: what is stored already is left out. A hit gets another verdict here if its application
judges by circumstance.

It fails as its statements do, and then nothing of the batch is written. Run again, it does the same; only the two watches remember
what they saw, and a hit keeps the verdict that it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from shortener.accounts.settings import ApplicationSettings
from shortener.clicks import queries
from shortener.clicks.client_address import shorten_address
from shortener.clicks.device_counts import LATE_ID_DISTANCE, count_late
from shortener.clicks.hit_metrics import CLICKS, hit_metric
from shortener.clicks.queries import EventRow, HitRow, LinkRow
from shortener.clicks.resolver import UNKNOWN_LINK, Hit, LinkDirectory, LinkResolver, Resolution
from shortener.clicks.verdicts.contextual_rules import HitContext, RecentAddresses, RecentLinks, classify_by_context
from shortener.ids import IdGenerator
from shortener.model import HitFlag, LinkFlag, Topic, Verdict
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import TIME_SLOT_MS, CountDelta
from shortener.storage.bulk import insert_all
from shortener.storage.types import from_ms

# Plain numbers: flags of the enum module cost microseconds each, on every hit.
_FIRST_FOR_LINK, _FIRST_FOR_MESSAGE = int(HitFlag.FIRST_FOR_LINK), int(HitFlag.FIRST_FOR_MESSAGE)
_LATE, _OFF = int(HitFlag.LATE), int(HitFlag.DISABLED)
_STATE, _CLICK, _LATE_CLICK = int(Topic.STATE), int(Topic.CLICK), int(Topic.LATE_CLICK)
_SUSPECTED_CLICK = int(Topic.CLICK | Topic.SUSPECTED)
_EVERY_CLICK = int(LinkFlag.EVERY_CLICK)
# Looking a member up in its class costs more than the comparison.
_HUMAN, _SUSPECTED = Verdict.HUMAN, Verdict.SUSPECTED


@dataclass(slots=True)
class BatchResult:
    """What a committed batch did."""

    resolutions: list[Resolution]
    events: int = 0
    recorded: int = 0
    first_clicks: int = 0


#: A hit on a link that exists, and whether that is switched off.
_Real = tuple[Hit, LinkRow, bool]


class HitBatchWriter:
    """Writes batches of hits. Reads the hit policies of `directory` once per batch."""

    def __init__(self, ids: IdGenerator, resolver: LinkResolver, directory: LinkDirectory) -> None:
        self._ids = ids
        self._resolver = resolver
        self._directory = directory
        self._addresses = RecentAddresses()
        self._links = RecentLinks()

    def write(self, connection: Connection, hits: Sequence[Hit], again: bool = False) -> BatchResult:
        """Write the hits, of which there are some, in order of arrival. `again`: some may be stored already."""
        hit_policies = self._directory.hit_policies
        late = hits[0].id < self._ids() - LATE_ID_DISTANCE
        targets = queries.find_links(connection, {hit.code for hit in hits})
        known = queries.find_stored_hits(connection, [hit.id for hit in hits]) if again else set()
        outcome = BatchResult([])
        real: list[_Real] = []
        for hit in hits:
            target = targets.get(hit.code)
            resolution = self._resolver.resolve(hit, target, hit_policies)
            outcome.resolutions.append(resolution)
            if target is not None and resolution is not UNKNOWN_LINK and hit.id not in known:
                real.append((hit, target, resolution.off))
        if not real:
            return outcome
        if hit_policies.contextual_rules:
            self._judge_circumstances(connection, real, hit_policies.contextual_rules)

        # The first person on each link of each message.
        claims: dict[int, queries.Claim] = {}
        seen: dict[int, LinkRow] = {}
        first_on_link: dict[int, int] = {}  # link -> hit
        for hit, target, off in real:
            bit = 1 << target.position
            if hit.verdict is not _HUMAN or target.clicked_links & bit or off or hit.at >= target.expires_at:
                continue
            if first_on_link.setdefault(target.link_id, hit.id) == hit.id:
                message = target.message
                seen[message] = target
                if (claim := claims.get(message)) is None:
                    claims[message] = (message, hit.at, hit.id, bit)
                else:
                    _, at, earliest, bits = claim
                    claims[message] = (message, at, earliest, bits | bit)
        won = queries.claim_first_clicks(connection, list(claims.values()), seen) if claims else {}

        hit_rows: list[HitRow] = []
        event_rows: list[EventRow] = []
        counted: dict[tuple[int, int, str], int] = {}  # by cohort, quarter and metric
        late_clicks: list[tuple[int, int, int, str]] = []
        stricter, with_suspected = hit_policies.ip_privacy, hit_policies.with_suspected
        for hit, target, off in real:
            flags = _OFF if off else 0
            topics = 0
            if hit.at >= target.expires_at:
                flags |= _LATE
            metric = hit_metric(hit.verdict, flags)
            if flags & _LATE:
                if hit.verdict is _HUMAN and not off:
                    topics = _LATE_CLICK
            elif hit.verdict is _SUSPECTED:
                if target.application_id in with_suspected and not off:
                    topics = _SUSPECTED_CLICK
            elif metric == CLICKS:
                if late:
                    late_clicks.append((hit.id, target.cohort_id, hit.at, hit.user_agent))
                bits, is_first = won.get(target.message, (0, False))
                if first_on_link.get(target.link_id) == hit.id and bits & 1 << target.position:
                    flags, topics = _FIRST_FOR_LINK, _CLICK
                    _, _, earliest, _ = claims[target.message]
                    if is_first and earliest == hit.id:
                        flags |= _FIRST_FOR_MESSAGE
                        topics |= _STATE
                        outcome.first_clicks += 1
                        metric = "clicked_messages"
                elif target.flags & _EVERY_CLICK:
                    topics = _CLICK
            if metric is not None:
                key = (target.cohort_id, hit.at // TIME_SLOT_MS, metric)
                counted[key] = counted.get(key, 0) + 1
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
                        False,
                    )
                )
        tally = _tally_of(counted)
        if late_clicks:
            count_late(connection, tally, late_clicks)
        insert_all(
            connection,
            (queries.insert_hits, hit_rows),
            (queries.insert_events, event_rows),
            (count_deltas.insert, count_deltas.rows(self._ids(), tally)),
        )
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
            if hit.verdict is _HUMAN and (chosen := settings.get(target.application_id)) is not None
        ]
        watched = {target.message for _, target, chosen, _ in mine if chosen.all_links_within_second}
        links = queries.count_links(connection, watched) if watched else {}
        timed = {target.message for _, target, chosen, _ in mine if chosen.uses_report_times}
        reported = queries.find_report_times(connection, timed) if timed else {}
        for _, target, _, at in mine:
            if target.message in links:
                self._links.note(target.message, target.link_id, at)
        for hit, target, chosen, at in mine:
            recipients = 0
            if hit.origin and chosen.max_recipients_per_address_minute is not None:
                recipients = self._addresses.count((target.application_id, hit.origin), target.message, at)
            sent_at, delivered_at = reported.get(target.message, (None, None))
            facts = HitContext(
                at,
                sent_at=None if sent_at is None else from_ms(sent_at),
                delivered_at=None if delivered_at is None else from_ms(delivered_at),
                recipients_of_address=recipients,
                links_of_message=links.get(target.message, 0),
                opened_at=self._links.opened_at(target.message),
            )
            if judgement := classify_by_context(chosen, facts):
                hit.verdict, hit.rule = judgement.verdict, judgement.rule


def _tally_of(counted: Mapping[tuple[int, int, str], int]) -> CountDelta:
    """The first click of a message counts as a click too; by how soon it came, the fan-out counts it."""
    tally = CountDelta()
    for (cohort, quarter, metric), amount in counted.items():
        for each in ("clicks", metric) if metric == "clicked_messages" else (metric,):
            tally.add(cohort, quarter * TIME_SLOT_MS, each, amount)
    return tally
