"""This module handles rewrite requests: it stores messages and links, and returns the texts with short links.

A request is atomic: all of it is stored, or nothing. The response is returned after the commit, so every link in it redirects. The
new links are also stored in the link cache before the response is returned, unless the cache is unavailable. A repeated request or
message gets its first response.

If the connection to the database ends during the commit, the transaction is repeated for some seconds. It then searches for the
messages by their ids, which were generated before the first attempt. Therefore the request is stored once, and the caller gets
the usual response. If the database stays unavailable, CommitUncertain is raised. If the repeated transaction finds the request
stored, the rewriter does not add the links of the request to the link cache. The first redirect of a link adds the link. The
background job that hands messages on to gateways finds the messages of such a request within a second.

`plan.py` checks a request, `write.py` stores it in a transaction that many requests share, and `render.py` creates the texts.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from shortener.accounts.directory import Application
from shortener.errors import StoreUnavailable
from shortener.ids import IdGenerator
from shortener.messages.codes import Codes
from shortener.messages.item_plan import PlanCache, Problem
from shortener.messages.near_directives import count_signs
from shortener.messages.plan import PlannedRequest, plan_request
from shortener.messages.preview import preview_request
from shortener.messages.repeats import find_problems
from shortener.messages.rewrite_item import LinkHosts, RewriteItem, RewriteLimits
from shortener.messages.rewrite_totals import RewriteTotals
from shortener.messages.write import NewRows, Response, RewriteWriter
from shortener.model import Clock
from shortener.outbox.count_deltas import Cohorts
from shortener.outbox.link_sets import LinkSets
from shortener.redis.link_cache import LinkCache
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.group_commit import GroupCommit
from shortener.storage.key_table import Key, KeyTable
from shortener.tracing import Tracer

MAX_REQUESTS_PER_TRANSACTION = 64
#: A request with more characters of text than this is large. It is planned in a thread, because planning it takes more than 20 ms.
MAX_PLANNED_AT_ONCE = 20_000
#: Each further `#`, `&` or `%` of a text counts as 100 characters, because the search for mistyped directives examines the text
#: after it.
MAX_USUAL_SIGNS, SIGN_CHARACTERS = 10, 100
#: Each recipient counts as this many characters, because checking a phone number takes as long as planning this much text.
RECIPIENT_CHARACTERS = 20
MAX_PLANNERS = 2  # the maximum number of threads that plan requests
T = TypeVar("T")


class Rewriter:
    """The service that handles rewrite requests. `hosts` contains the hosts of the installation and the blocked hosts."""

    def __init__(
        self,
        *,
        database: Database,
        cache: LinkCache,
        ids: IdGenerator,
        codes: Codes,
        cohorts: Cohorts,
        clock: Clock,
        hosts: LinkHosts,
        limits: RewriteLimits,
        totals: RewriteTotals,
        tracer: Tracer | None,
        on_sends: Callable[[], None],
    ) -> None:
        """`on_sends` is called after each commit that queued messages for gateways. `tracer` is None if messages are not traced."""
        self._database = database
        self._codes = codes
        self._cohorts = cohorts
        self._link_sets = LinkSets()
        self._clock = clock
        self._hosts = hosts
        self._limits = limits
        self._plans = PlanCache(hosts)
        self._totals = totals
        self._cache = cache
        self.tracer = tracer
        self._on_sends = on_sends
        self._caching: asyncio.Task[None] | None = None
        self._planners = ThreadPoolExecutor(MAX_PLANNERS, thread_name_prefix="rewrite-plan")
        self._processes = KeyTable(schema.processes, ("application_id", "track", "type"), self._new_process)
        writer = RewriteWriter(ids, codes, cohorts, self._link_sets, self._processes, hosts)
        self._commits: GroupCommit[PlannedRequest, Response, NewRows] = GroupCommit(
            database,
            writer.apply,
            apply_again=lambda connection, requests: writer.apply(connection, [one.with_own_ids() for one in requests]),
            max_items=MAX_REQUESTS_PER_TRANSACTION,
            after=self._committed,
            is_bulk=True,
            rows_of=lambda request: request.row_count,
        )

    async def rewrite(
        self,
        application: Application,
        items: Sequence[RewriteItem],
        *,
        idempotency_key: str | None = None,
        content: bytes = b"",
        earlier_content: bytes = b"",
    ) -> Response:
        """Rewrite messages. Return the response, one entry per recipient in request order, after the commit.

        `content` is the content that a repeat with the same `idempotency_key` must have; `earlier_content` is the same content in
        the form that the previous release stored.

        Raise ApiError with a detail for each problem, or StoreUnavailable. After both errors, nothing was stored. Raise
        CommitUncertain if it is not known whether the request was stored."""
        started = time.time_ns() if self.tracer is not None else 0
        plan = partial(
            plan_request,
            application,
            items,
            idempotency_key=idempotency_key,
            content=content,
            earlier_content=earlier_content,
            now=self._clock(),
            limits=self._limits,
            hosts=self._hosts,
            cache=self._plans,
        )
        if not _is_large(items):
            return await self._store(application, _check_new(plan()), started)
        with self._large_request():
            return await self._store(application, await self._in_thread(lambda: _check_new(plan())), started)

    @contextlib.contextmanager
    def _large_request(self) -> Iterator[None]:
        """Count a request as a large request in progress while the `with` block runs."""
        self._totals.large_requests += 1
        try:
            yield
        finally:
            self._totals.large_requests -= 1

    async def _in_thread(self, compute: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._planners, compute)

    async def _store(self, application: Application, request: PlannedRequest, started: int) -> Response:
        """Store a planned request with the next commit, and return its response. `started` is the time in ns since 1970 at which
        the span of the rewrite begins."""
        response = await self._commits.submit(request)
        if self._caching is not None and not self._caching.done():
            # Wait for the task that stores the links of this commit and of earlier commits in the link cache.
            await asyncio.wait([self._caching])
        if self.tracer is not None:
            self._trace(self.tracer, application.id, response, started)
        return response

    def _trace(self, tracer: Tracer, application_id: int, response: Response, started: int) -> None:
        """Create the root span of each message of a response."""
        ended = time.time_ns()
        for entry in response:
            if message_id := entry.get("message_id"):
                tracer.record_rewrite(application_id, message_id, started, ended, links=len(entry.get("links", ())))

    async def find_problems(
        self, application: Application, items: Sequence[RewriteItem], *, incomplete: Collection[int] = (), is_stored: bool = True
    ) -> list[Problem]:
        """Return the problems of messages, for the response to a request that is rejected because of another error.

        `incomplete` contains the indexes of items without some of their fields: they are not compared with stored messages. If
        `is_stored` is false, or the database is unavailable, the result contains no problem that depends on stored rows."""
        request = await self._plan_without_key(application, items)
        if incomplete:
            request = replace(
                request,
                messages=tuple(replace(one, has_own_id=False) if one.item_index in incomplete else one for one in request.messages),
            )
        # A request that is too large is rejected whatever is stored, and the comparison with stored rows would take long.
        if is_stored and request.error is None and (request.may_be_repeat or request.may_send):
            with contextlib.suppress(StoreUnavailable):
                return await self._database.read(find_problems, request)
        return await self._in_thread(request.all_problems) if _is_large(items) else request.all_problems()

    async def preview(self, application: Application, items: Sequence[RewriteItem]) -> Response:
        """Return the response that these messages would get, with sample codes. Nothing is stored. Raise ApiError if a problem
        rejects the request."""
        return preview_request(await self._plan_without_key(application, items), self._codes.mint)

    async def _plan_without_key(self, application: Application, items: Sequence[RewriteItem]) -> PlannedRequest:
        """Plan a request that will not be stored, for a preview or to find its problems. The plan has no Idempotency-Key. A large
        request is planned in a thread."""
        plan = partial(
            plan_request,
            application,
            items,
            idempotency_key=None,
            content=b"",
            now=self._clock(),
            limits=self._limits,
            hosts=self._hosts,
            cache=self._plans,
        )
        if not _is_large(items):
            return plan()
        with self._large_request():
            return await self._in_thread(plan)

    async def flush(self) -> None:
        """Wait until all accepted requests are stored."""
        await self._commits.flush()

    def _new_process(self, key: Key) -> dict[str, Any]:
        return {"process_key": secrets.token_hex(16).upper(), "created_at": self._clock()}

    def _committed(self, new: NewRows) -> None:
        self._cohorts.remember(new.cohorts)
        self._link_sets.remember(new.link_sets)
        self._processes.remember(new.processes)
        self._totals.messages += new.messages
        self._totals.links += len(new.links)
        if new.sends:
            self._on_sends()
        if new.links:
            self._caching = asyncio.get_running_loop().create_task(self._cache.put(new.links))


def _check_new(request: PlannedRequest) -> PlannedRequest:
    """Return a planned request. Raise ApiError if a problem rejects it regardless of the stored rows."""
    if not request.may_be_repeat and not request.may_send:
        request.check(request.messages)
    return request


def _is_large(items: Sequence[RewriteItem]) -> bool:
    """Return whether the messages have so much text, or so many recipients, that they are planned in a thread."""
    size = sum((len(item.body) + RECIPIENT_CHARACTERS) * max(len(item.to), 1) for item in items)
    return size > MAX_PLANNED_AT_ONCE or size + sum(_sign_cost(item.body) for item in items) > MAX_PLANNED_AT_ONCE


def _sign_cost(body: str) -> int:
    return max(count_signs(body) - MAX_USUAL_SIGNS, 0) * SIGN_CHARACTERS
