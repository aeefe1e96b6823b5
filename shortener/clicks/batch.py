"""The transaction that writes a batch of hits.

The number of statements does not depend on the size of the batch: one query finds all links by their codes, one statement stores
the first clicks, and three inserts write the hits, the events and the count deltas.

A link has at most one first click, and a message has at most one first click, even if several processes write hits at the same
time. Only a hit by a human can be a first click. A first click creates an event. Each hit on an existing link is stored. Hits by
machines, hits after the expiry of the link and hits on a disabled link are stored too, but they are not clicks. There is one
exception: ignored and suspected hits above a limit are counted in a metric and not stored. In this transaction, the contextual
rules of an application may change the verdict of a hit.

If a statement fails, the transaction stores nothing, and the caller can write the batch again. The argument `is_uncertain` means
that an earlier attempt may have been committed. In this case, hits that are already stored are not written again, but the result
counts them. A failed attempt leaves two changes in memory: the entries of RecentAddresses and RecentLinks, and the verdicts of
the hits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field
from typing import NamedTuple

from sqlalchemy import Connection

from shortener.accounts.hit_policies import HitPolicies
from shortener.accounts.settings import ApplicationSettings
from shortener.clicks import queries
from shortener.clicks.client_address import shorten_address
from shortener.clicks.device_counts import LATE_ID_DISTANCE, Click, count_late
from shortener.clicks.fallback_values import fill_from_messages, is_unfilled
from shortener.clicks.hit_limit import HitLimit
from shortener.clicks.hit_metrics import CLICKED_LINKS, CLICKED_MESSAGES, CLICKS, hit_metric
from shortener.clicks.queries import EventRow, HitRow, LinkRow, ReportTimes
from shortener.clicks.resolver import AWAITING_CONFIRMATION, CONFIRMED, Hit, LinkDirectory, LinkResolver, Resolution
from shortener.clicks.verdicts import early_hits
from shortener.clicks.verdicts.contextual_rules import BEFORE_SENT, HitContext, RecentAddresses, RecentLinks, classify_by_context
from shortener.ids import IdGenerator, ms_of
from shortener.model import HitFlag, LinkFlag, Topic, Verdict, mutable_record
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import TIME_SLOT_MS, CountDelta, sent_slot
from shortener.storage.bulk import insert_all
from shortener.storage.types import from_ms

# The flags are copied to plain integers, because an operation on enum flags takes microseconds, and each hit needs several of
# them.
_FIRST_FOR_LINK, _FIRST_FOR_MESSAGE = int(HitFlag.FIRST_FOR_LINK), int(HitFlag.FIRST_FOR_MESSAGE)
_FIRST = _FIRST_FOR_LINK | _FIRST_FOR_MESSAGE
_LATE, _OFF, _PAGE = int(HitFlag.LATE), int(HitFlag.DISABLED), int(HitFlag.CONFIRMATION_PAGE)
_STATE, _CLICK, _LATE_CLICK = int(Topic.STATE), int(Topic.CLICK), int(Topic.LATE_CLICK)
_SUSPECTED_CLICK = int(Topic.CLICK | Topic.SUSPECTED)
_EVERY_CLICK, _OPT_OUT = int(LinkFlag.EVERY_CLICK), int(LinkFlag.OPT_OUT)
# The verdicts are module constants, because looking up an enum member takes longer than comparing two of them.
_HUMAN, _SUSPECTED, _IGNORED = Verdict.HUMAN, Verdict.SUSPECTED, Verdict.IGNORED
_NOT_REPORTED = ReportTimes()


@mutable_record
class BatchResult:
    """The effect of a committed batch. `resolutions` has one resolution for each hit, in the order of the hits."""

    resolutions: list[Resolution]
    events: int = 0  # the events that this attempt wrote, plus one for each hit that an earlier attempt stored
    recorded: int = 0  # the number of stored hits, including those that an earlier attempt stored
    inserted: int = 0  # the number of hits that this attempt stored
    first_clicks: int = 0
    unknown: int = 0  # the number of hits whose code belongs to no link
    links: Mapping[str, LinkRow] = field(default_factory=dict)  # the found links, by code
    # The number of ignored and suspected hits that were not stored, because their link had reached its limit of stored hits.
    not_stored: int = 0


class ProbePassed(Exception):
    """Raised to roll back a transaction that wrote test rows. The exception shows that the database can store hits."""


#: A hit, the link with its code, and whether this link is switched off (see resolver.py).
_LinkHit = tuple[Hit, LinkRow, bool]


class HitBatchWriter:
    """A writer of batches of hits. It reads the hit policies from `directory` once for each batch. `ignored_limit` is the maximum
    number of ignored hits of one link that are stored per minute, and `suspected_limit` the maximum number of suspected hits; 0
    means no limit."""

    def __init__(
        self,
        ids: IdGenerator,
        resolver: LinkResolver,
        directory: LinkDirectory,
        ignored_limit: int = 0,
        suspected_limit: int = 0,
    ) -> None:
        self._ids = ids
        self._resolver = resolver
        self._directory = directory
        self._addresses = RecentAddresses()
        self._links = RecentLinks()
        self._ignored = HitLimit(ignored_limit)
        self._suspected = HitLimit(suspected_limit)

    def write(self, connection: Connection, hits: Sequence[Hit], is_uncertain: bool = False) -> BatchResult:
        """Write at least one hit, in the order of arrival, and return the result. `is_uncertain` is true if an earlier attempt may
        have stored some of the hits."""
        policies = self._directory.hit_policies
        links = queries.find_links(connection, {hit.code for hit in hits})
        stored = queries.find_stored_hits(connection, hits) if is_uncertain else {}
        result = BatchResult([], links=links)
        new: list[_LinkHit] = []
        has_unfilled = False
        for hit in hits:
            link = links.get(hit.code)
            resolution = self._resolver.resolve(hit, link, policies)
            result.resolutions.append(resolution)
            if resolution.gone and is_unfilled(resolution):
                has_unfilled = True
            if link is None or resolution.unknown:
                result.unknown += 1
            elif hit.id in stored:
                continue
            elif hit.verdict is not _HUMAN and not self._admit(hit, link):
                result.not_stored += 1
            else:
                new.append((hit, link, resolution.off))
        if has_unfilled:
            fill_from_messages(connection, hits, links, result.resolutions)
        if stored:
            result.recorded = result.events = len(stored)
            result.first_clicks = sum(1 for flags in stored.values() if flags & _FIRST_FOR_MESSAGE)
        if not new:
            return result
        rules = policies.contextual_rules
        early = self._classify_by_context(connection, new, rules) if rules else ()
        pages = self._await_confirmation(hits, links, result.resolutions, policies) if policies.confirm_clicks else ()

        candidates = _first_click_candidates(new, self._resolver.is_late)
        won = (
            queries.claim_first_clicks(connection, list(candidates.claims.values()), candidates.links) if candidates.claims else {}
        )
        if early:
            early_hits.add(connection, early, from_ms(ms_of(self._ids())))
        # The oldest hit is not always the first one in the batch, because the spool may return old hits after new hits.
        has_late = min(hit.id for hit in hits) < self._ids() - LATE_ID_DISTANCE
        rows = _BatchRows(self._ids, policies, candidates, won, is_late=self._resolver.is_late, pages=pages, keep_clicks=has_late)
        rows.add(new)
        if rows.clicks:
            count_late(connection, rows.deltas, rows.clicks)
        insert_all(
            connection,
            (queries.insert_hits, rows.hits),
            (queries.insert_events, rows.events),
            (count_deltas.insert, count_deltas.rows(self._ids(), rows.deltas)),
        )
        result.inserted = len(rows.hits)
        result.recorded += result.inserted
        result.events += len(rows.events)
        result.first_clicks += rows.first_clicks
        return result

    def _admit(self, hit: Hit, link: LinkRow) -> bool:
        """Return whether this ignored or suspected hit is stored. It is not stored if its link has reached the limit."""
        if hit.verdict is _IGNORED:
            return self._ignored.admit(hit.code, hit.at)
        return bool(link.flags & _OPT_OUT) or self._suspected.admit(hit.code, hit.at)

    def probe(self, connection: Connection) -> None:
        """Write test rows with the statements of a batch. Then raise ProbePassed, which rolls the transaction back.

        If the database cannot store any hit, raise the error of the database instead."""
        hit, message, at = self._ids(), -1, 0
        link = LinkRow("", -1, message, 0, 0, 0, 0, 0, "", None, None, 0, None, 0, 0)
        queries.find_links(connection, {link.code})
        queries.claim_first_clicks(connection, [(message, at, hit, 1)], {message: link})
        deltas = CountDelta()
        deltas.add(0, at, CLICKS)
        insert_all(
            connection,
            (queries.insert_hits, [(hit, link.link_id, at, int(_HUMAN), "", 0, "", "", None)]),
            (queries.insert_events, [(hit, 0, _CLICK, at, message, link.link_id, hit, False)]),
            (count_deltas.insert, count_deltas.rows(self._ids(), deltas)),
        )
        raise ProbePassed

    def _await_confirmation(
        self, hits: Sequence[Hit], links: Mapping[str, LinkRow], resolutions: list[Resolution], policies: HitPolicies
    ) -> set[int]:
        """Find the hits whose clients get the confirmation page. Replace the resolutions of these hits and return their ids.

        The resolution of a suspected hit is computed again, because a contextual rule may have changed the verdict of the hit. A
        hit that gets the page although no rule suspects it becomes IGNORED, so that it is not a click. A hit that was redirected
        before this transaction gets no page."""
        pages: set[int] = set()
        for index, hit in enumerate(hits):
            if hit.is_redirected:
                continue
            is_open = resolutions[index].location is not None and not resolutions[index].gone
            if is_open and hit.verdict is not _HUMAN:
                resolutions[index] = self._resolver.resolve(hit, links.get(hit.code), policies)
            if resolutions[index].confirm:
                pages.add(hit.id)
                if hit.verdict is _HUMAN:
                    hit.verdict, hit.rule = Verdict.IGNORED, AWAITING_CONFIRMATION
        return pages

    def _classify_by_context(
        self, connection: Connection, hits: Sequence[_LinkHit], settings: Mapping[int, ApplicationSettings]
    ) -> set[int]:
        """Apply the contextual rules to hits with the verdict HUMAN, if their application uses such rules. Return the row ids of
        the messages with early hits, including early hits that an earlier attempt has classified.

        A press of the button on the confirmation page stays HUMAN, because only a person presses the button. Such a press is also
        no evidence against other hits."""
        human = [
            (hit, link, chosen, from_ms(hit.at))
            for hit, link, _ in hits
            if hit.verdict is _HUMAN and hit.rule != CONFIRMED and (chosen := settings.get(link.application_id)) is not None
        ]
        watched = {link.message for _, link, chosen, _ in human if chosen.all_links_within_second}
        links = queries.count_links(connection, watched) if watched else {}
        timed = {link.message for _, link, chosen, _ in human if chosen.uses_report_times}
        reported = queries.find_report_times(connection, timed) if timed else {}
        for _, link, _, at in human:
            if link.message in links:
                self._links.add(link.message, link.link_id, at)
        for hit, link, chosen, at in human:
            recipients = 0
            if hit.origin and chosen.max_recipients_per_address_minute is not None:
                recipients = self._addresses.count((link.application_id, hit.origin), link.message, at)
            times = reported.get(link.message, _NOT_REPORTED)
            facts = HitContext(
                at,
                sent_at=None if times.sent_at is None else from_ms(times.sent_at),
                delivered_at=None if times.delivered_at is None else from_ms(times.delivered_at),
                is_reported=times != _NOT_REPORTED,
                recipients_of_address=recipients,
                links_of_message=links.get(link.message, 0),
                opened_at=self._links.opened_at(link.message),
            )
            if classification := classify_by_context(chosen, facts):
                hit.verdict, hit.rule = classification.verdict, classification.rule
        return {link.message for hit, link, _ in hits if hit.rule == BEFORE_SENT}


class _Candidates(NamedTuple):
    """The hits that may become first clicks, with their links."""

    claims: dict[int, queries.Claim]  # the possible first click on each message, by row id of the message
    links: dict[int, LinkRow]  # one link of each message, by row id of the message
    first_on_link: dict[int, int]  # by row id of the link: the id of the hit that may become the first click on this link


def _first_click_candidates(hits: Sequence[_LinkHit], is_late: Callable[[int, int], bool]) -> _Candidates:
    """Return the first hit by a human on each link that has no first click yet."""
    claims: dict[int, queries.Claim] = {}
    links: dict[int, LinkRow] = {}
    first_on_link: dict[int, int] = {}
    for hit, link, is_off in hits:
        bit = 1 << link.position
        if hit.verdict is not _HUMAN or link.clicked_links & bit or is_off:
            continue
        if hit.at >= link.expires_at and is_late(hit.at, link.expires_at):
            continue
        if first_on_link.setdefault(link.link_id, hit.id) == hit.id:
            message = link.message
            links[message] = link
            if (claim := claims.get(message)) is None:
                claims[message] = (message, hit.at, hit.id, bit)
            else:
                _, at, earliest, bits = claim
                claims[message] = (message, at, earliest, bits | bit)
    return _Candidates(claims, links, first_on_link)


class _BatchRows:
    """The rows that a batch inserts, and the deltas of the counts."""

    def __init__(
        self,
        ids: IdGenerator,
        policies: HitPolicies,
        candidates: _Candidates,
        won: Mapping[int, tuple[int, bool]],
        *,
        is_late: Callable[[int, int], bool],
        pages: Collection[int],
        keep_clicks: bool,
    ) -> None:
        """`won` is the result of `queries.claim_first_clicks`. `is_late` is the function `LinkResolver.is_late`. `pages` contains
        the ids of the hits whose clients get the confirmation page. If `keep_clicks` is true, `add` also collects the clicks in
        `clicks`."""
        self._ids = ids
        self._ip_privacy = policies.ip_privacy
        self._with_suspected = policies.with_suspected
        self._every_click = policies.every_click
        self._candidates = candidates
        self._won = won
        self._is_late = is_late
        self._pages = pages
        self._keep_clicks = keep_clicks
        self.hits: list[HitRow] = []
        self.events: list[EventRow] = []
        self.deltas = CountDelta()
        self.clicks: list[Click] = []
        self.first_clicks = 0

    def add(self, hits: Sequence[_LinkHit]) -> None:
        """Add the rows of the hits, the rows of their events, and the deltas of their counts."""
        # The number of hits by (metric, flags of first clicks, cohort, time slot, time slot of the message, link set).
        counts: dict[tuple[str, int, int, int, int, int], int] = {}
        ip_privacy, hit_rows = self._ip_privacy, self.hits
        for hit, link, is_off in hits:
            verdict, at = hit.verdict, hit.at
            flags = _OFF if is_off else 0
            topics = 0
            if at >= link.expires_at and self._is_late(at, link.expires_at):
                flags |= _LATE
            metric = hit_metric(verdict, flags)
            if flags & _LATE:
                if (verdict is _HUMAN or (verdict is _SUSPECTED and link.flags & _OPT_OUT)) and not is_off:
                    topics = _LATE_CLICK
            elif verdict is _SUSPECTED:
                if hit.id in self._pages:
                    flags |= _PAGE
                if is_off:
                    pass
                elif link.flags & _OPT_OUT:
                    topics = _CLICK
                elif link.application_id in self._with_suspected:
                    topics = _SUSPECTED_CLICK
            elif metric == CLICKS:
                click_flags, topics = self._flags_of_click(hit, link)
                flags |= click_flags
            if metric is not None:
                group = (metric, flags & _FIRST, link.cohort_id, at // TIME_SLOT_MS, sent_slot(link.message), link.link_set)
                counts[group] = counts.get(group, 0) + 1
            address, user_agent, country = hit.address, hit.user_agent, hit.country
            if not link.url:  # A link without a URL belongs to an erased message, so no personal data of the recipient is stored.
                address, user_agent, country = "", "", None
            elif ip_privacy and (privacy := ip_privacy.get(link.application_id)) is not None:
                address = shorten_address(address, privacy)
            hit_rows.append((hit.id, link.link_id, at, int(verdict), hit.rule, flags, address, user_agent, country))
            if topics:
                # The event of a first click on a message has the same id as its hit and is found by this id. Therefore the index of
                # schema.OTHER_EVENTS needs no entry for it.
                event = hit.id if topics & _STATE else self._ids()
                self.events.append((event, link.application_id, topics, at, link.message, link.link_id, hit.id, False))
        for (metric, first, cohort, slot, sent, link_set), amount in counts.items():
            self.deltas.add_slots(cohort, slot, metric, sent, link_set, amount)
            if first & _FIRST_FOR_LINK and link_set:
                self.deltas.add_slots(cohort, slot, CLICKED_LINKS, sent, link_set, amount)
            if first & _FIRST_FOR_MESSAGE:
                self.first_clicks += amount
                # The fan-out, and not this transaction, counts the time from sending to the first click.
                self.deltas.add_slots(cohort, slot, CLICKED_MESSAGES, sent, link_set, amount)

    def _flags_of_click(self, hit: Hit, link: LinkRow) -> tuple[int, int]:
        """Return the flags of a click, and the topics of the event that the click creates."""
        if self._keep_clicks:
            # Use the same values that `add` stores for this hit.
            user_agent, country = (hit.user_agent, hit.country) if link.url else ("", None)
            self.clicks.append(Click(hit.id, link.cohort_id, hit.at, user_agent, link.message, link.link_set, country))
        if self._candidates.first_on_link.get(link.link_id) == hit.id:
            bits, is_first = self._won.get(link.message, (0, False))
            if bits & 1 << link.position:
                if is_first and self._candidates.claims[link.message][2] == hit.id:
                    return _FIRST_FOR_LINK | _FIRST_FOR_MESSAGE, _CLICK | _STATE
                return _FIRST_FOR_LINK, _CLICK
        return 0, _CLICK if link.flags & _EVERY_CLICK or link.application_id in self._every_click else 0
