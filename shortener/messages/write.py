"""This module contains the database transaction of rewrite requests: it recognises repeats, creates codes, and inserts messages,
links and responses.

Several requests share one transaction. For each request, `RewriteWriter` decides in this order:

1. If the Idempotency-Key is stored, return the stored response, or IDEMPOTENCY_CONFLICT if the content differs.
2. If a message_id is stored, the message is a repeat. If its content differs, reject the whole request (MESSAGE_ID_CONFLICT).
3. If a new message has a problem, reject the whole request.
4. Create the texts of the repeats from their stored rows, and create the texts of the new messages.
5. Deduct the cost of the messages that a gateway sends. If the balance is too low, reject the whole request.
6. Collect the rows of the new messages, and queue those that a gateway sends (send_queue.py).

Therefore a repeat gets its first response even if the request would be invalid now. If a unique index rejects the transaction
(equal codes, or a race with another process for a message_id), the caller runs it again with new codes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
from sqlalchemy import Connection

from shortener.errors import ApiError, ErrorCode
from shortener.ids import IdGenerator
from shortener.messages import queries
from shortener.messages.codes import Codes
from shortener.messages.item_plan import PlannedLink
from shortener.messages.plan import PlannedMessage, PlannedRequest
from shortener.messages.queries import StoredLink, StoredMessage, StoredResponse
from shortener.messages.refusals import Refusals
from shortener.messages.render import RewrittenMessage, new_link, render_new, render_repeat
from shortener.messages.repeats import classify, find_stored
from shortener.messages.rewrite_item import LinkHosts
from shortener.messages.send_queue import QueuedSend, SendBatch, find_sends, insert_sends
from shortener.messages.spans import TRACK_MODES
from shortener.model import LinkFlag, State, record
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import TIME_SLOT_MS, CohortKey, Cohorts, CountDelta, sent_slot
from shortener.outbox.link_sets import LinkSetKey, LinkSets, link_set_key
from shortener.redirect_locations import fill_placeholders, message_values
from shortener.redis.link_cache import CachedLink
from shortener.storage.bulk import insert_all
from shortener.storage.key_table import KeyTable

Response = list[dict[str, Any]]  # the response contains one entry for each recipient
OPT_OUT_LABELS = frozenset({"optout", "opt_out", "opt-out"})
# The link flags are plain integers here, because one operation on enum flags takes microseconds, and each link needs several
# operations.
_EVERY_CLICK, _FILL_CLICK_ID = int(LinkFlag.EVERY_CLICK), int(LinkFlag.FILL_CLICK_ID)
_CREATED = int(State.CREATED)
_TRACK_INDEX = {track: index for index, track in enumerate(TRACK_MODES)}
_OPT_OUT, _APPEND_CLICK_ID = int(LinkFlag.OPT_OUT), int(LinkFlag.APPEND_CLICK_ID)
ProcessKey = tuple[int, str, str]  # the key of a conversion process: application_id, track, type


@record
class NewRows:
    """The links that a transaction inserted, and the ids that it read. The caller may cache these values after the commit.

    `sends` is the number of messages that were queued for gateways."""

    cohorts: dict[CohortKey, int]
    link_sets: dict[LinkSetKey, int]
    processes: dict[ProcessKey, int]
    links: list[CachedLink]
    messages: int  # the number of messages that the transaction inserted
    sends: int = 0


class RewriteWriter:
    """A writer of planned rewrite requests. `GroupCommit` calls `apply` in a transaction."""

    def __init__(
        self, ids: IdGenerator, codes: Codes, cohorts: Cohorts, link_sets: LinkSets, processes: KeyTable, hosts: LinkHosts
    ) -> None:
        self._ids = ids
        self._codes = codes
        self._cohorts = cohorts
        self._link_sets = link_sets
        self._processes = processes
        self._hosts = hosts

    def apply(self, connection: Connection, requests: Sequence[PlannedRequest]) -> tuple[list[Response | Exception], NewRows]:
        """Store the requests. Return a response or an ApiError for each request, and the new rows."""
        creatable = [(request, message) for request in requests for message in request.messages if not message.plan.problems]
        processes = self._processes.get_ids(connection, {_process_key(*one) for one in creatable})
        # The keys of these dicts are the `id()` of Python objects. This is possible because messages that share a plan object have
        # the same application, campaign and links, and because no request object is deleted before the transaction ends.
        cohort_keys = {id(message): _cohort_key(request, message, processes) for request, message in creatable}
        cohorts = self._cohorts.get_ids(connection, set(cohort_keys.values()))
        first_of_plan = {id(message.plan): (request, message) for request, message in creatable}
        link_set_keys = {plan: _link_set_keys(*one) for plan, one in first_of_plan.items()}
        link_sets = self._link_sets.get_ids(connection, {key for keys in link_set_keys.values() for key in keys})
        cohort_ids = {message: cohorts[key] for message, key in cohort_keys.items()}
        link_set_ids = {plan: [link_sets[key] for key in keys] for plan, keys in link_set_keys.items()}
        rows = _Rows(self._ids, cohort_ids, link_set_ids)
        batch = _Batch(connection, requests, rows, self._hosts, self._codes)
        results: list[Response | Exception] = []
        for request in requests:
            try:
                results.append(batch.respond(request))
            except ApiError as error:
                results.append(error)
        rows.insert(connection)
        if requests:
            batch.write_balances(max(request.now for request in requests))
        return results, NewRows(cohorts, link_sets, processes, rows.cached_links, rows.message_count, rows.queued_sends)


class _Batch:
    """The rewrite requests of one transaction. A request can repeat a message of an earlier request in the same transaction."""

    def __init__(
        self, connection: Connection, requests: Sequence[PlannedRequest], rows: _Rows, hosts: LinkHosts, codes: Codes
    ) -> None:
        self._rows = rows
        self._hosts = hosts
        self._mint = codes.mint
        keys = {(request.application.id, request.idempotency_key) for request in requests if request.idempotency_key is not None}
        self._responses = queries.find_responses(connection, keys) if keys else {}
        self._messages = find_stored(connection, requests)
        self._links = queries.find_links(connection, [message.row_id for message in self._messages.values()])
        self._sends = SendBatch(connection, requests)
        self._connection = connection
        self._queued: dict[int, QueuedSend] = {}  # messages of this transaction that were queued, by row id

    def respond(self, request: PlannedRequest) -> Response:
        """Return the response to a request and collect its new rows. If the request is rejected, raise ApiError and collect no
        rows."""
        application_id, key = request.application.id, request.idempotency_key
        stored = None if key is None else self._responses.get((application_id, key))
        if stored is not None:
            if stored.content_hash not in (request.content_hash, request.earlier_hash):
                raise ApiError(ErrorCode.IDEMPOTENCY_CONFLICT)
            return stored.messages
        repeats, conflicts, new = classify(request, self._messages)
        problems = [*conflicts, *self._sends.find_problems(request, new)]
        accepted = request.check(new, problems)
        if repeats or accepted:
            response = self._respond_to_mixed(request, repeats, new, Refusals(request, accepted))
        else:
            response = [rewritten.serialize() for _, rewritten in self._create(request, new)]
        if key is not None:
            self._responses[application_id, key] = StoredResponse(request.content_hash, response)
            self._rows.add_response(request, key, response)
        return response

    def _create(self, request: PlannedRequest, new: Iterable[PlannedMessage]) -> list[tuple[PlannedMessage, RewrittenMessage]]:
        """Deduct the cost of new messages and collect their rows. Return each message with its texts."""
        created = [(message, self._render_new(request, message)) for message in new]
        self._sends.deduct(request, (rewritten.cost for _, rewritten in created))
        for message, rewritten in created:
            self._store(request, message, rewritten)
        return created

    def _respond_to_mixed(
        self,
        request: PlannedRequest,
        repeats: Sequence[tuple[PlannedMessage, StoredMessage]],
        new: Sequence[PlannedMessage],
        refused: Refusals,
    ) -> Response:
        """Return the response to a request that repeats messages or leaves out recipients."""
        rendered = self._render_repeats(repeats)
        for message, rewritten in self._create(request, [one for one in new if refused.find(*_place(one)) is None]):
            rendered[_place(message)] = rewritten
        places = [(index, recipient) for index, item in enumerate(request.items) for recipient in item.places]
        return [rendered[place].serialize() if place in rendered else refused.serialize(*place) for place in places]

    def _render_repeats(self, repeats: Sequence[tuple[PlannedMessage, StoredMessage]]) -> dict[tuple[int, int], RewrittenMessage]:
        """Render the stored messages again. The keys of the result are (index of the message, index of the recipient)."""
        row_ids = [stored.row_id for message, stored in repeats if message.item.gateway is not None]
        sends = (find_sends(self._connection, row_ids) if row_ids else {}) | self._queued
        return {_place(message): self._render_repeat(message, stored, sends.get(stored.row_id)) for message, stored in repeats}

    def _render_repeat(self, message: PlannedMessage, stored: StoredMessage, send: QueuedSend | None) -> RewrittenMessage:
        links = self._links.get(stored.row_id, [])
        # Stored codes are valid on the domain for which they were created, even if new links use another domain.
        base_url = self._hosts.base_url(links[0].domain_id if links else 0)
        rewritten = render_repeat(message, stored.request_id, links, base_url, first_track=stored.track, was_sent=send is not None)
        return rewritten if send is None else replace(rewritten, cost=send.cost)

    def _render_new(self, request: PlannedRequest, message: PlannedMessage) -> RewrittenMessage:
        plan = message.plan
        rewritten = render_new(message, [new_link(self._mint(), link, message) for link in plan.links], plan.base_url)
        cost = self._sends.cost_of(request, message, rewritten.segments)
        return rewritten if cost is None else replace(rewritten, cost=cost)

    def _store(self, request: PlannedRequest, message: PlannedMessage, rewritten: RewrittenMessage) -> None:
        row_id = self._rows.add_message(request, message, rewritten)
        gateway_id = message.plan.gateway_id
        if gateway_id is not None:
            self._rows.add_send(self._sends.row(request, message, row_id, rewritten.body, rewritten.cost))
            self._queued[row_id] = QueuedSend(gateway_id, rewritten.cost)
        if message.has_own_id:
            key = (request.application.id, message.message_id)
            self._messages[key] = StoredMessage(row_id, message.request_id, message.content_hash, message.plan.track)
            self._links[row_id] = list(rewritten.links)

    def write_balances(self, now: int) -> None:
        """Write the balances from which costs were deducted. `now` is in milliseconds since 1970."""
        self._sends.write(now)


class _Rows:
    """A collector of the rows of one transaction, which are inserted together. `cohorts` maps the `id()` of each message object to
    its cohort id. `link_sets` maps the `id()` of each plan object to the ids for its `_link_set_keys`."""

    def __init__(self, ids: IdGenerator, cohorts: Mapping[int, int], link_sets: Mapping[int, Sequence[int]]) -> None:
        self._ids = ids
        self._cohorts = cohorts
        self._link_sets = link_sets
        self._messages: list[tuple[object, ...]] = []
        self._links: list[tuple[object, ...]] = []
        self._responses: list[tuple[object, ...]] = []
        self._sends: list[tuple[object, ...]] = []
        self._counted = CountDelta()
        self.cached_links: list[CachedLink] = []

    @property
    def message_count(self) -> int:
        """The number of messages that were added."""
        return len(self._messages)

    def add_message(self, request: PlannedRequest, message: PlannedMessage, rewritten: RewrittenMessage) -> int:
        """Add the rows of a message, its links and its counts. Return the row id of the message."""
        row_id = self._ids()
        cohort_id = self._cohorts[id(message)]
        item = message.item
        price = item.mt_price if item.mt_price is not None else rewritten.cost
        link_sets = self._link_sets[id(message.plan)]
        link_set = link_sets[0] if link_sets else None
        self._messages.append(
            (
                row_id,
                request.application.id,
                cohort_id,
                message.message_id,
                message.request_id,
                item.external_request_id,
                message.content_hash,
                message.number.e164,
                item.from_address,
                item.sender_id_id,
                item.sender_id_alias,
                _CREATED,
                request.now,
                rewritten.encoding,
                rewritten.segments,
                None if price is None else format(price, "f"),
                item.callback_url,
                orjson.dumps(item.metadata).decode() if item.metadata else None,
                link_set,
                _TRACK_INDEX[message.plan.track],
            )
        )
        slot, sent = request.now // TIME_SLOT_MS, sent_slot(row_id)
        for position, (planned, link) in enumerate(zip(message.plan.links, rewritten.links, strict=True)):
            own_set = link_sets[position + 1] if len(link_sets) > 1 else link_sets[0]
            self._add_link(request, message, planned, link, position, row_id, cohort_id, own_set)
            self._counted.add_slots(cohort_id, slot, "links", sent, own_set)
        self._counted.add_slots(cohort_id, slot, "messages", sent, link_set or 0)
        self._counted.add_slots(cohort_id, slot, "segments", sent, link_set or 0, rewritten.segments)
        if rewritten.cost is not None:
            self._counted.add_slots(cohort_id, slot, count_deltas.COST, sent, link_set or 0, rewritten.cost)
        return row_id

    def _add_link(
        self,
        request: PlannedRequest,
        message: PlannedMessage,
        planned: PlannedLink,
        link: StoredLink,
        position: int,
        message_row: int,
        cohort_id: int,
        link_set: int,
    ) -> None:
        flags = _APPEND_CLICK_ID if request.application.settings.click_id_param else 0
        if planned.every_click:
            flags |= _EVERY_CLICK
        if is_opt_out(planned, message.item.opt_out):
            flags |= _OPT_OUT | _EVERY_CLICK
        location, fallback = planned.destination.location, message.plan.fallback_location
        if not location.startswith((b"http://", b"https://")):
            flags &= ~_APPEND_CLICK_ID  # a link with an app scheme, such as tel:, has no query
        if fallback is not None and "{" in fallback:
            fallback = fill_placeholders(fallback.encode(), _placeholder_values(message, link.code)).decode()
        if planned.destination.placeholders:
            location = fill_placeholders(location, _placeholder_values(message, link.code))
            if "click_id" in planned.destination.placeholders:
                flags |= _FILL_CLICK_ID
        location_text = location.decode()
        link_id = self._ids()
        self.cached_links.append(
            CachedLink(
                code=link.code,
                link_id=link_id,
                message=message_row,
                application_id=request.application.id,
                domain_id=link.domain_id,
                flags=flags,
                url=location_text,
                fallback_url=fallback,
                expires_at=link.expires_at,
            )
        )
        self._links.append(
            (
                link_id,
                link.code,
                message_row,
                request.application.id,
                cohort_id,
                link.domain_id,
                position,
                flags,
                link.url,
                None if location_text == link.url else location_text,
                link.label,
                fallback,
                link.expires_at,
                link_set,
                link.path or None,
            )
        )

    @property
    def queued_sends(self) -> int:
        """The number of messages that are queued for gateways."""
        return len(self._sends)

    def add_send(self, row: tuple[object, ...]) -> None:
        """Add the row that queues a message for its gateway (the result of `SendBatch.row`)."""
        self._sends.append(row)

    def add_response(self, request: PlannedRequest, key: str, response: Response) -> None:
        """Add the row that stores the response to a request with an Idempotency-Key."""
        self._responses.append((request.application.id, key, request.content_hash, orjson.dumps(response).decode(), request.now))

    def insert(self, connection: Connection) -> None:
        """Insert all collected rows. Raise IntegrityError if a message_id exists, or if a code exists or was the code of a purged
        link."""
        insert_all(
            connection,
            (queries.insert_messages, self._messages),
            (queries.insert_links, self._links),
            (queries.insert_responses, self._responses),
            (insert_sends, self._sends),
            (count_deltas.insert, count_deltas.rows(self._ids(), self._counted)),
            unless=(queries.purged_codes, [link.code for link in self.cached_links]),
        )


def _place(message: PlannedMessage) -> tuple[int, int]:
    return message.item_index, message.recipient


def _process_key(request: PlannedRequest, message: PlannedMessage) -> ProcessKey:
    return (request.application.id, *message.item.tracking)


def _cohort_key(request: PlannedRequest, message: PlannedMessage, processes: Mapping[ProcessKey, int]) -> CohortKey:
    item = message.item
    process_id = processes[_process_key(request, message)]
    return (request.application.id, item.campaign, item.source, message.number.country or "", process_id)


def _link_set_keys(request: PlannedRequest, message: PlannedMessage) -> list[LinkSetKey]:
    """Return the key of the link set with all links of a message. If the message has several links, also return the key of the link
    set of each single link."""
    links = message.plan.links
    groups = [links, *([link] for link in links)] if len(links) > 1 else [links] * len(links)
    return [_link_set_key(request, message, group) for group in groups]


def _link_set_key(request: PlannedRequest, message: PlannedMessage, links: Sequence[PlannedLink]) -> LinkSetKey:
    named = [(link.destination.url, link.span.label) for link in links]
    return link_set_key(request.application.id, message.item.campaign, named)


def _placeholder_values(message: PlannedMessage, code: str) -> dict[str, str]:
    """Return the values that replace the placeholders in destinations. {click_id} is left out, because the redirect inserts it."""
    return {**message_values(message.message_id, message.item.campaign, message.number.e164), "code": code}


def is_opt_out(link: PlannedLink, marked: Collection[str]) -> bool:
    """Return whether a link is an opt-out link, by which the recipient refuses further messages.

    Its label is one of OPT_OUT_LABELS, or `marked` contains its label or its destination."""
    label = link.span.label
    return (label is not None and label.lower() in OPT_OUT_LABELS) or link.destination.url in marked or label in marked
