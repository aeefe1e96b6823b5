"""Rewriting: a request of the send pipeline becomes messages, links and rewritten texts, all of it or nothing.

Three steps. `plan` checks everything that can be checked without the store and names each bad item. `_apply` runs in a
transaction that many requests share: it looks up what is already there (the same message_id answers as before), mints codes and
inserts. The answers are given after the commit, so that a link in an answer always resolves, and after the new links are in the
link cache, or could not be brought there. A clash of codes, or a race with another process for a message_id, makes a unique index
refuse the transaction; it runs again, with new codes.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

import orjson
from sqlalchemy import Connection

from shortener.accounts.directory import Application
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import IdGenerator, new_message_id
from shortener.messages import queries
from shortener.messages.codes import Codes
from shortener.messages.directives import DirectiveError, find_directives
from shortener.messages.phone_numbers import PhoneNumber, PhoneNumberError, check_sender, parse_number
from shortener.messages.scripts import mixed_scripts
from shortener.messages.segments import count_segments
from shortener.messages.url_detection import find_urls
from shortener.model import Clock, LinkFlag, State
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import CohortKey, Cohorts, CountDelta
from shortener.redis.link_cache import CachedLink, LinkCache, NoLinkCache
from shortener.storage import schema
from shortener.storage.batcher import GroupCommit
from shortener.storage.bulk import insert_all
from shortener.storage.database import Database
from shortener.storage.key_table import Key, KeyTable
from shortener.storage.types import from_ms, to_iso, to_ms
from shortener.urls import Destination, UrlError, fill_placeholders, parse_destination

TrackMode = Literal["directives", "first_url", "all_urls"]
ProcessKey = tuple[int, str, str]  # application_id, track, type
#: Links of one message: `first_clicks.links` has a bit for each. Three segments hold 15 short links and nothing else.
MAX_LINKS = 30
_SHOWN = 100  # details of one refusal


@dataclass(frozen=True, slots=True)
class RewriteItem:
    """One message as the pipeline hands it over, for one recipient or several. `field_path` is where a field of ours stands in the
    request, in the words of whoever sent it; of a recipient if its place among them is given."""

    to: tuple[str, ...]
    body: str
    message_ids: tuple[str | None, ...] | None = None  # None among them: to be minted
    field_path: Callable[[str, int | None], str] = lambda name, recipient: name
    track: TrackMode = "directives"
    from_address: str = ""
    sender_id_id: str = ""
    sender_id_alias: str = ""
    request_id: str = ""
    external_request_id: str = ""
    campaign: str = ""
    source: Literal["api", "campaign"] = "api"
    mt_price: Decimal | None = None
    expires_in: int | None = None  # seconds
    expires_at: datetime | None = None
    fallback_url: str | None = None
    callback_url: str | None = None
    metadata: dict[str, Any] | None = None
    tracking: tuple[str, str] = ("", "")  # Infobip: what is tracked, and the type; messages of one kind share a conversion process


@dataclass(frozen=True, slots=True)
class _TrackedUrl:
    """A stretch of the body that a short link takes the place of."""

    start: int
    end: int
    destination: Destination
    label: str | None
    every_click: bool


@dataclass(frozen=True, slots=True)
class _PlannedMessage:
    """One recipient's message, checked; everything but its codes."""

    item: RewriteItem
    recipient: int
    number: PhoneNumber
    message_id: str
    given: bool  # the pipeline chose the message_id
    request_id: str
    content_hash: str
    pieces: tuple[_TrackedUrl, ...]
    expires_at: int  # ms
    fallback: str | None  # as a Location header spells it
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _PlannedRequest:
    application: Application
    messages: list[_PlannedMessage]
    idempotency_key: str | None
    content_hash: str
    now: int  # ms


@dataclass(frozen=True, slots=True)
class _NewRows:
    """What one transaction inserted; the rewriter remembers and caches it after the commit."""

    cohorts: dict[CohortKey, int]
    processes: dict[ProcessKey, int]
    links: list[CachedLink]


@dataclass(slots=True)
class RewrittenLink:
    code: str
    short_url: str
    url: str
    label: str | None
    expires_at: datetime


@dataclass(slots=True)
class RewrittenMessage:
    """The answer for one recipient (contract, section 3)."""

    message_id: str
    message_request_id: str
    to: str
    body: str
    links: list[RewrittenLink]
    encoding: str
    segments: int
    segments_without_rewriting: int
    warnings: list[str] = field(default_factory=list)

    def answer(self) -> dict[str, Any]:
        return {
            "message_id": self.message_id,
            "message_request_id": self.message_request_id,
            "to": self.to,
            "body": self.body,
            "links": [
                {
                    "code": link.code,
                    "short_url": link.short_url,
                    "url": link.url,
                    "label": link.label,
                    "expires_at": to_iso(link.expires_at),
                }
                for link in self.links
            ],
            "encoding": self.encoding,
            "segments": self.segments,
            "segments_without_rewriting": self.segments_without_rewriting,
            "warnings": self.warnings,
        }


class Rewriter:
    def __init__(
        self,
        database: Database,
        ids: IdGenerator,
        codes: Codes,
        cohorts: Cohorts,
        clock: Clock,
        *,
        base_url: str,
        is_ours: Callable[[str], bool],
        is_blocked: Callable[[int, str], bool],
        link_ttl: timedelta,
        batch_limit: int,
        cache: LinkCache | None = None,
    ) -> None:
        """`is_ours`: whether a URL leads to a host of ours (a link to a short link would go in circles). `is_blocked`: whether no
        link of an application may lead to a host."""
        self._ids = ids
        self._codes = codes
        self._cohorts = cohorts
        self._clock = clock
        self._base_url = base_url
        self._is_ours = is_ours
        self._is_blocked = is_blocked
        self._link_ttl = link_ttl
        self._batch_limit = batch_limit
        self._cache = cache or NoLinkCache()
        self._caching: asyncio.Task[None] | None = None
        self._processes = KeyTable(schema.processes, ("application_id", "track", "type"), self._new_process)
        self._commits: GroupCommit[_PlannedRequest, list[dict[str, Any]], _NewRows] = GroupCommit(
            database, self._apply, max_items=64, after=self._committed
        )

    async def rewrite(
        self, application: Application, items: Sequence[RewriteItem], *, idempotency_key: str | None = None, content: bytes = b""
    ) -> list[dict[str, Any]]:
        """One answer per recipient, in request order; what they name is durable. `content`: what the key stands for.

        Raises ApiError naming each bad item, and StoreUnavailable; in both cases nothing is stored."""
        request = self.plan(application, items, idempotency_key, content)
        answers = await self._commits.submit(request)
        if self._caching is not None:
            await asyncio.wait([self._caching])  # of this commit or, as the cache keeps their order, a later one
        return answers

    async def flush(self) -> None:
        await self._commits.flush()

    def _new_process(self, key: Key) -> dict[str, Any]:
        return {"process_key": secrets.token_hex(16).upper(), "created_at": self._clock()}

    # Checks, without the store.

    def plan(
        self, application: Application, items: Sequence[RewriteItem], idempotency_key: str | None, content: bytes
    ) -> _PlannedRequest:
        recipients = sum(len(item.to) for item in items)
        if recipients > self._batch_limit:
            raise ApiError(
                ErrorCode.BATCH_TOO_LARGE, f"{recipients} recipients in one request; at most {self._batch_limit} are taken."
            )
        now = self._clock()
        problems: list[tuple[ErrorCode, Detail]] = []
        messages: list[_PlannedMessage] = []
        chosen: set[str] = set()
        for item in items:
            messages += self._plan_item(application, item, now, chosen, problems)
        if problems:
            raise ApiError(problems[0][0], details=[detail for _, detail in problems[:_SHOWN]])
        return _PlannedRequest(application, messages, idempotency_key, hashlib.sha256(content).hexdigest(), to_ms(now))

    def _plan_item(
        self,
        application: Application,
        item: RewriteItem,
        now: datetime,
        chosen: set[str],
        problems: list[tuple[ErrorCode, Detail]],
    ) -> list[_PlannedMessage]:
        def refuse(code: ErrorCode, name: str, reason: str, position: int | None = None, recipient: int | None = None) -> None:
            problems.append((code, Detail(item.field_path(name, recipient), reason, position)))

        before = len(problems)
        if not item.to:
            refuse(ErrorCode.INVALID_RECIPIENT, "to", "wants one recipient or more")
        numbers: list[PhoneNumber] = []
        for index, to in enumerate(item.to):
            try:
                numbers.append(parse_number(to))
            except PhoneNumberError as error:
                refuse(ErrorCode.INVALID_RECIPIENT, "to", error.reason, recipient=index)
        if item.message_ids is not None:
            if len(item.message_ids) != len(item.to):
                reason = f"wants one id for each of the {len(item.to)} recipients, got {len(item.message_ids)}"
                refuse(ErrorCode.INVALID_REQUEST, "message_id", reason)
            for index, chosen_id in enumerate(item.message_ids):
                if chosen_id is None:
                    continue
                if chosen_id in chosen:
                    reason = f"{chosen_id!r} stands twice in this request"
                    refuse(ErrorCode.INVALID_REQUEST, "message_id", reason, recipient=index)
                chosen.add(chosen_id)
        expires_at = self._expiry(application, item, now, refuse)
        pieces = self._pieces(application, item, refuse)
        fallback: str | None = None
        for name, url in (("fallback_url", item.fallback_url), ("lt_callbackurl", item.callback_url)):
            if url:
                try:
                    checked = parse_destination(url)
                except UrlError as error:
                    refuse(ErrorCode.INVALID_REQUEST, name, error.reason)
                else:
                    fallback = checked.location.decode() if name == "fallback_url" else fallback
        if len(problems) > before:
            return []
        warnings = _glued(item.body, pieces) + _mixed(pieces) + _unusual_sender(item.from_address)
        common = _content_of(item)
        request_id = item.request_id or new_message_id()
        message_ids = item.message_ids or [None] * len(numbers)
        messages = []
        for index, (number, given_id) in enumerate(zip(numbers, message_ids, strict=True)):
            message_id, given = given_id or new_message_id(), given_id is not None
            digest = hashlib.sha256(common + number.e164.encode()).hexdigest()[:32] if given else ""
            message = _PlannedMessage(
                item, index, number, message_id, given, request_id, digest, pieces, to_ms(expires_at), fallback, warnings
            )
            messages.append(message)
        return messages

    def _expiry(self, application: Application, item: RewriteItem, now: datetime, refuse: Callable[..., None]) -> datetime:
        own = application.settings.link_ttl_days
        longest = timedelta(days=own) if own else None
        if item.expires_at is not None and item.expires_in is not None:
            refuse(ErrorCode.INVALID_REQUEST, "expires_at", "stands beside expires_in; one of them, not both")
        if item.expires_at is not None:
            wanted = item.expires_at
            if wanted <= now:
                refuse(ErrorCode.INVALID_REQUEST, "expires_at", "lies in the past")
        elif item.expires_in is not None:
            wanted = now + timedelta(seconds=item.expires_in)
        else:
            wanted = now + (longest or self._link_ttl)
        return min(wanted, now + longest) if longest else wanted

    def _pieces(self, application: Application, item: RewriteItem, refuse: Callable[..., None]) -> tuple[_TrackedUrl, ...]:
        try:
            directives = find_directives(item.body)
        except DirectiveError as error:
            refuse(ErrorCode.INVALID_TRACK_DIRECTIVE, "body", error.reason, error.position)
            return ()
        found = [(d.start, d.end, d.url, d.label, d.kind == "trackurl") for d in directives]
        if item.track != "directives":
            taken = [(start, end) for start, end, *_ in found]
            urls: list[tuple[int, int, str, str | None, bool]] = [
                (url.start, url.end, url.url, None, False)
                for url in find_urls(item.body)
                if not any(start < url.end and url.start < end for start, end in taken)
            ]
            if item.track == "first_url":
                urls = [] if found else urls[:1]
            found = sorted(found + urls)
        if len(found) > MAX_LINKS:
            reason = f"more than {MAX_LINKS} URLs to track in one message"
            refuse(ErrorCode.INVALID_TRACK_URL, "body", reason, found[MAX_LINKS][0])
            return ()
        pieces = []
        for start, end, url, label, every in found:
            try:
                destination = parse_destination(url)
                if self._is_ours(destination.url):
                    raise UrlError("leads to a short link of this service: a click would go in circles")
                if self._is_blocked(application.id, destination.host):
                    raise UrlError("leads to a host that is blocked here")
            except UrlError as error:
                refuse(ErrorCode.INVALID_TRACK_URL, "body", f"{url!r} {error.reason}", start)
                continue
            every_click = every or application.settings.click_events == "every"
            pieces.append(_TrackedUrl(start, end, destination, label, every_click))
        return tuple(pieces)

    # In the transaction that several requests share.

    def _apply(
        self, connection: Connection, requests: Sequence[_PlannedRequest]
    ) -> tuple[list[list[dict[str, Any]] | Exception], _NewRows]:
        kept = {(r.application.id, r.idempotency_key) for r in requests if r.idempotency_key is not None}
        answers = queries.find_answers(connection, [(a, k) for a, k in kept if k is not None]) if kept else {}
        given = {(r.application.id, m.message_id) for r in requests for m in r.messages if m.given}
        known = queries.find_messages(connection, given) if given else {}
        known_links = queries.find_links(connection, [message.row for message in known.values()]) if known else {}
        processes = self._processes.get_ids(connection, {_process(r.application.id, m) for r in requests for m in r.messages})
        cohort_keys = {_cohort(r.application.id, m, processes) for r in requests for m in r.messages}
        cohorts = self._cohorts.get_ids(connection, cohort_keys)

        results: list[list[dict[str, Any]] | Exception] = []
        rows = _Rows(self._ids, self._codes)
        for request in requests:
            application_id = request.application.id
            if request.idempotency_key is not None:
                kept_answer = answers.get((application_id, request.idempotency_key))
                if kept_answer is not None:
                    same = kept_answer[0] == request.content_hash
                    results.append(kept_answer[1] if same else ApiError(ErrorCode.IDEMPOTENCY_CONFLICT))
                    continue
            conflicts = [
                Detail(
                    message.item.field_path("message_id", message.recipient), f"{message.message_id!r} is used for other content"
                )
                for message in request.messages
                if message.given
                and (before := known.get((application_id, message.message_id))) is not None
                and before.content_hash != message.content_hash
            ]
            if conflicts:
                results.append(ApiError(ErrorCode.MESSAGE_ID_CONFLICT, details=conflicts[:_SHOWN]))
                continue
            domain = request.application.domain
            base_url = domain.base_url if domain else self._base_url
            result: list[dict[str, Any]] = []
            for message in request.messages:
                before = known.get((application_id, message.message_id)) if message.given else None
                if before is not None:
                    made = known_links.get(before.row, [])
                    # The domain that the codes resolve on, whatever is new links' by now.
                    made_on = {link.domain_id for link in made}
                    made_under = next((one.base_url for one in request.application.domains if one.id in made_on), self._base_url)
                    links = [(link.code, link.expires_at) for link in made]
                    result.append(_answer(message, before.request_id, links, made_under).answer())
                    continue
                links = [(self._codes.mint(), message.expires_at) for _ in message.pieces]
                rewritten = _answer(message, message.request_id, links, base_url)
                cohort = cohorts[_cohort(application_id, message, processes)]
                row = rows.add(request, message, rewritten, cohort, domain.id if domain else 0)
                if message.given:
                    # Seen by the requests after this one in the same transaction.
                    known[application_id, message.message_id] = queries.KnownMessage(row, message.request_id, message.content_hash)
                    known_links[row] = [queries.KnownLink(*link, domain.id if domain else 0) for link in links]
                result.append(rewritten.answer())
            if request.idempotency_key is not None:
                answers[application_id, request.idempotency_key] = (request.content_hash, result)
                rows.answers.append(
                    (application_id, request.idempotency_key, request.content_hash, orjson.dumps(result).decode(), request.now)
                )
            results.append(result)
        rows.insert(connection)
        return results, _NewRows(cohorts, processes, rows.cached)

    def _committed(self, new: _NewRows) -> None:
        self._cohorts.remember(new.cohorts)
        self._processes.remember(new.processes)
        if new.links:
            self._caching = asyncio.get_running_loop().create_task(self._cache.put(new.links))


class _Rows:
    """What one transaction inserts."""

    def __init__(self, ids: IdGenerator, codes: Codes) -> None:
        self._ids = ids
        self._messages: list[tuple[object, ...]] = []
        self._links: list[tuple[object, ...]] = []
        self.answers: list[tuple[object, ...]] = []
        self.cached: list[CachedLink] = []
        self._tally = CountDelta()

    def add(
        self, request: _PlannedRequest, message: _PlannedMessage, rewritten: RewrittenMessage, cohort: int, domain_id: int
    ) -> int:
        row = self._ids()
        item = message.item
        application_id = request.application.id
        self._messages.append(
            (
                row,
                application_id,
                cohort,
                message.message_id,
                message.request_id,
                item.external_request_id,
                message.content_hash,
                message.number.e164,
                item.from_address,
                item.sender_id_id,
                item.sender_id_alias,
                int(State.CREATED),
                request.now,
                rewritten.encoding,
                rewritten.segments,
                None if item.mt_price is None else format(item.mt_price, "f"),
                item.callback_url,
                orjson.dumps(item.metadata).decode() if item.metadata else None,
            )
        )
        append = LinkFlag.APPEND_CLICK_ID if request.application.settings.click_id_param else LinkFlag.NONE
        for position, (piece, link) in enumerate(zip(message.pieces, rewritten.links, strict=True)):
            location = piece.destination.location
            flags = append
            if piece.destination.placeholders:
                location = fill_placeholders(location, _known_values(message, link.code))
                if "click_id" in piece.destination.placeholders:
                    flags |= LinkFlag.FILL_CLICK_ID
            if piece.every_click:
                flags |= LinkFlag.EVERY_CLICK
            text = location.decode()
            link_id = self._ids()
            self.cached.append(
                CachedLink(
                    code=link.code,
                    link_id=link_id,
                    message=row,
                    application_id=application_id,
                    domain_id=domain_id,
                    flags=int(flags),
                    url=text,
                    fallback_url=message.fallback,
                    expires_at=message.expires_at,
                )
            )
            self._links.append(
                (
                    link_id,
                    link.code,
                    row,
                    application_id,
                    cohort,
                    domain_id,
                    position,
                    int(flags),
                    piece.destination.url,
                    None if text == piece.destination.url else text,
                    piece.label,
                    message.fallback,
                    message.expires_at,
                )
            )
        self._tally.add(cohort, request.now, "messages")
        self._tally.add(cohort, request.now, "segments", rewritten.segments)
        return row

    def insert(self, connection: Connection) -> None:
        insert_all(
            connection,
            (queries.insert_messages, self._messages),
            (queries.insert_links, self._links),
            (queries.insert_answers, self.answers),
            (count_deltas.insert, count_deltas.rows(self._ids(), self._tally)),
        )


def _answer(message: _PlannedMessage, request_id: str, links: Sequence[tuple[str, int]], base_url: str) -> RewrittenMessage:
    body = message.item.body
    short_urls = [f"{base_url}/{code}" for code, _ in links]
    parts: list[str] = []
    end = 0
    for piece, short_url in zip(message.pieces, short_urls, strict=True):
        parts += (body[end : piece.start], short_url)
        end = piece.end
    parts.append(body[end:])
    rewritten = "".join(parts)
    segments = count_segments(rewritten)
    return RewrittenMessage(
        message_id=message.message_id,
        message_request_id=request_id,
        to=message.number.e164,
        body=rewritten,
        links=[
            RewrittenLink(code, short_url, piece.destination.url, piece.label, from_ms(expires_at))
            for (code, expires_at), short_url, piece in zip(links, short_urls, message.pieces, strict=True)
        ],
        encoding=segments.encoding,
        segments=segments.segments,
        segments_without_rewriting=count_segments(_plain(message)).segments,
        warnings=list(message.warnings),
    )


def _plain(message: _PlannedMessage) -> str:
    """The text as it would have gone out with the long URLs in place of the directives."""
    body = message.item.body
    if not message.pieces:
        return body
    parts: list[str] = []
    end = 0
    for piece in message.pieces:
        parts += (body[end : piece.start], piece.destination.url)
        end = piece.end
    parts.append(body[end:])
    return "".join(parts)


def _process(application_id: int, message: _PlannedMessage) -> ProcessKey:
    return (application_id, *message.item.tracking)


def _cohort(application_id: int, message: _PlannedMessage, processes: Mapping[ProcessKey, int]) -> CohortKey:
    process_id = processes[_process(application_id, message)]
    return (application_id, message.item.campaign, message.item.source, message.number.country or "", process_id)


def _known_values(message: _PlannedMessage, code: str) -> dict[str, str]:
    """Everything but the click id is known when the link is made; its own placeholder stays for the click."""
    return {
        "message_id": message.message_id,
        "code": code,
        "campaign": message.item.campaign,
        "phone_sha256": hashlib.sha256(message.number.e164.encode()).hexdigest(),
    }


def _content_of(item: RewriteItem) -> bytes:
    """What makes two messages of one message_id the same: everything that the pipeline said, but not the ids it minted."""
    content = (
        item.body,
        item.track,
        item.from_address,
        item.sender_id_id,
        item.sender_id_alias,
        item.external_request_id,
        item.campaign,
        item.source,
        None if item.mt_price is None else format(item.mt_price.normalize(), "f"),
        item.expires_in,
        to_iso(item.expires_at),
        item.fallback_url,
        item.callback_url,
        item.metadata,
        item.tracking,
    )
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)


def _glued(body: str, pieces: Sequence[_TrackedUrl]) -> tuple[str, ...]:
    """Phones take letters and some punctuation next to a link into it; say so rather than change the sender's text."""
    warnings = []
    for piece in pieces:
        before, after = body[piece.start - 1 : piece.start], body[piece.end : piece.end + 1]
        if before.isalnum() or after.isalnum() or (after and after in "/?#&=%-_~+@:"):
            warnings.append(f"position {piece.start}: text is glued to the short link; phones may take it for a part of it")
    return tuple(warnings)


def _mixed(pieces: Sequence[_TrackedUrl]) -> tuple[str, ...]:
    """A host that looks like another one: phones may warn of it, and carriers block it."""
    return tuple(
        f"position {piece.start}: the host {piece.destination.host} mixes {' and '.join(scripts)} letters, as look-alikes do"
        for piece in pieces
        if (scripts := mixed_scripts(piece.destination.host))
    )


def _unusual_sender(sender: str) -> tuple[str, ...]:
    """What 23 Telecom refuses, others take: whether a sender may be used is for the carrier to say."""
    reason = check_sender(sender) if sender else None
    return (f"from {sender!r} {reason}; carriers may refuse it",) if reason else ()
