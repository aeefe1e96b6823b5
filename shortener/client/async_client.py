"""This module contains `AsyncClient`, the client for asyncio and trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, Unpack, cast, overload

import httpx

from shortener.client import calls
from shortener.client.bulk import BulkMessage, BulkRewrite, OnFailure, OnInvalid, Progress, new_key
from shortener.client.calls import ApiCall, Grouping, ResultPage, RewriteOptions
from shortener.client.connection import DEFAULT_TIMEOUT_SECONDS, Connection
from shortener.client.exceptions import ClientError
from shortener.client.models import (
    ConversionInfo,
    ConversionReceipt,
    FigureTotals,
    LinkInfo,
    MessageInfo,
    ReportSummary,
    RewrittenText,
    SendOutcome,
    SkippedRecipient,
)
from shortener.client.retry import RetryPolicy

T = TypeVar("T")


class AsyncClient:
    """A client of the HTTP API for asyncio and trio. Use it with `async with`, or call `close`.

    `timeout` limits the time for each call, in seconds, including repeated attempts. Each method also accepts a `timeout` of its
    own. `api_key` is an API key. `tracker_token` is only needed to report conversions. `batch_limit` is the maximum number of
    recipients in one request. `extra_schemes` contains the additional URL schemes that the application permits, for links that
    open an app on the phone; `send_long` needs them. `transport` is an httpx transport that replaces the real connections in
    tests."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str = "",
        tracker_token: str = "",
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        retry: RetryPolicy | None = None,
        batch_limit: int = 1000,
        extra_schemes: Container[str] = (),
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = Connection(
            base_url,
            api_key=api_key,
            tracker_token=tracker_token,
            timeout=timeout,
            retry=retry or RetryPolicy(),
            headers=headers or {},
            transport=transport,
        )
        self._bulk = partial(BulkRewrite, batch_limit=batch_limit, extra_schemes=extra_schemes)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    @overload
    async def rewrite(
        self,
        *,
        to: str,
        body: str,
        from_: str | None = None,
        message_id: str | None = None,
        on_failure: OnFailure = "raise",
        idempotency_key: str | None = None,
        timeout: float | None = None,
        **options: Unpack[RewriteOptions],
    ) -> RewrittenText: ...

    @overload
    async def rewrite(
        self,
        *,
        to: list[str] | tuple[str, ...],
        body: str,
        from_: str | None = None,
        message_id: Sequence[str] | None = None,
        on_failure: OnFailure = "raise",
        idempotency_key: str | None = None,
        timeout: float | None = None,
        **options: Unpack[RewriteOptions],
    ) -> list[RewrittenText]: ...

    async def rewrite(
        self,
        *,
        to: str | list[str] | tuple[str, ...],
        body: str,
        from_: str | None = None,
        message_id: str | Sequence[str] | None = None,
        on_failure: OnFailure = "raise",
        idempotency_key: str | None = None,
        timeout: float | None = None,
        **options: Unpack[RewriteOptions],
    ) -> RewrittenText | list[RewrittenText]:
        """Rewrite one message. Return its text, or one text per recipient if `to` is a list.

        `on_failure` decides what happens if the service does not respond in time. With "send_long", the result is a text in which
        the long URLs replace the directives. With "raise", the call raises an error. An invalid request always raises an error.
        `send_long` with `gateway` raises ValueError: the service may send the message although it did not respond in time, and the
        recipient would get it twice.

        If `to` has more recipients than `batch_limit`, the message is sent in chunks. Then `timeout` limits the time for each
        chunk, in seconds, including repeated attempts, and a failure raises BulkError."""
        is_single = isinstance(to, str)
        message: dict[str, Any] = {**options, "to": to, "body": body, "from": from_, "message_id": message_id}
        rewrite = self._bulk([message], on_failure=on_failure, on_invalid="fail", key=idempotency_key, is_single=is_single)
        texts = cast(list[RewrittenText], await self._run(rewrite, None, timeout))
        return texts[0] if is_single else texts

    async def rewrite_many(
        self,
        messages: Iterable[BulkMessage],
        *,
        on_failure: OnFailure = "raise",
        on_invalid: OnInvalid = "fail",
        progress: Progress | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> list[RewrittenText | SkippedRecipient]:
        """Rewrite any number of messages in chunks of `batch_limit` recipients. Return one entry per recipient, in order.

        `timeout` limits the time for each chunk, and `deadline` limits the time for the whole call, both in seconds. After each
        chunk, the function `progress(done, total)` is called with the number of finished recipients and the number of all
        recipients.

        A chunk is stored completely or not at all. If a chunk fails, BulkError contains the texts of the chunks before it. With
        `on_failure="send_long"`, a failed chunk raises no error: its recipients get texts with long URLs, even after the
        deadline. With `on_invalid="skip"`, an invalid recipient becomes a `SkippedRecipient`."""
        rewrite = self._bulk(
            cast(Iterable[Mapping[str, Any]], messages),
            on_failure=on_failure,
            on_invalid=on_invalid,
            key=idempotency_key,
            total_seconds=deadline,
        )
        return await self._run(rewrite, progress, timeout)

    async def _run(
        self, rewrite: BulkRewrite, progress: Progress | None, timeout: float | None
    ) -> list[RewrittenText | SkippedRecipient]:
        while (call := rewrite.next_call()) is not None:
            try:
                rewrite.succeeded(await self._connection.send(call, timeout, rewrite.remaining_seconds()))
            except ClientError as error:
                rewrite.failed(error)
            if progress is not None:
                progress(len(rewrite.results), rewrite.total)
        return rewrite.results

    async def preview(
        self,
        *,
        to: str,
        body: str,
        from_: str | None = None,
        timeout: float | None = None,
        **options: Unpack[RewriteOptions],
    ) -> RewrittenText:
        """Return what `rewrite` would return, with segments, warnings and sample codes for the links. Nothing is stored."""
        return await self._connection.send(calls.preview(to, body, from_, options), timeout)

    async def send(
        self,
        *,
        to: str | Sequence[str],
        message: str,
        sender_id: str,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        **options: Unpack[RewriteOptions],
    ) -> SendOutcome:
        """Rewrite a message and send it to 1 to 100 recipients through the gateway of the application."""
        recipients = [to] if isinstance(to, str) else to
        call = calls.send(recipients, message, sender_id, idempotency_key or new_key(), options)
        return await self._connection.send(call, timeout)

    async def status(self, message_id: str, *, timeout: float | None = None) -> MessageInfo:
        """Return a message with its links and conversions."""
        return await self._connection.send(calls.status(message_id), timeout)

    async def report_delivery(self, *reports: Mapping[str, Any], timeout: float | None = None) -> ReportSummary:
        """Report delivery states, such as `{"message_id": "m-1", "state": "DELIVERED"}`. Each report is accepted or refused
        separately."""
        return await self._connection.send(calls.report_delivery(reports), timeout)

    async def report_conversion(
        self,
        *,
        message_id: str | None = None,
        click_id: str | None = None,
        action: str | None = None,
        status: str | None = None,
        disposition: str | None = None,
        value: Decimal | str | None = None,
        currency: str | None = None,
        transaction_id: str | None = None,
        timestamp: datetime | str | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> ConversionReceipt:
        """Report a conversion with the tracker token. If you send the same report again, the service still records only one
        conversion."""
        parameters = {
            **(metadata or {}),
            "message_id": message_id,
            "click_id": click_id,
            "action": action,
            "status": status,
            "disposition": disposition,
            "value": value,
            "currency": currency,
            "transaction_id": transaction_id,
            "timestamp": timestamp,
        }
        return await self._connection.send(calls.report_conversion(parameters), timeout)

    async def link(self, code: str, *, timeout: float | None = None) -> LinkInfo:
        """Return a short link."""
        return await self._connection.send(calls.link(code), timeout)

    async def update_link(self, code: str, *, timeout: float | None = None, **changes: Any) -> LinkInfo:
        """Change a link: `url`, `expires_at`, `fallback_url` (None removes it) or `enabled`. Return the changed link."""
        return await self._connection.send(calls.update_link(code, changes), timeout)

    async def statistics(self, *, timeout: float | None = None, **filters: Any) -> FigureTotals:
        """Return the totals of a period. Filters: `since`, `until`, `campaign`, `source`, `basis`, `tz`."""
        return await self._connection.send(calls.statistics(filters), timeout)

    async def statistics_by(
        self, grouping: Grouping, *, timeout: float | None = None, **filters: Any
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Yield one JSON object with figures for each day, country, campaign, destination, label, hour or action. `grouping`
        selects which of them."""
        async for item in self._items(lambda cursor: calls.statistics_by(grouping, filters, cursor), timeout):
            yield item

    async def messages(self, *, timeout: float | None = None, **filters: Any) -> AsyncIterator[MessageInfo]:
        """Yield messages, newest first. Filters: `state`, `to`, `campaign`, `source`, `since`, `until`, `limit` (of one page)."""
        async for item in self._items(lambda cursor: calls.messages(filters, cursor), timeout):
            yield item

    async def links(self, *, timeout: float | None = None, **filters: Any) -> AsyncIterator[LinkInfo]:
        """Yield links, beginning with the links of the newest message. Filters: `campaign`, `url`, `label`, `domain`, `enabled`,
        `expired`, `since`."""
        async for item in self._items(lambda cursor: calls.links(filters, cursor), timeout):
            yield item

    async def conversions(self, *, timeout: float | None = None, **filters: Any) -> AsyncIterator[ConversionInfo]:
        """Yield conversions, newest first. Filters: `campaign`, `action`, `status`, `disposition`, `since`, `until`."""
        async for item in self._items(lambda cursor: calls.conversions(filters, cursor), timeout):
            yield item

    async def clicks(self, *, timeout: float | None = None, **filters: Any) -> AsyncIterator[Mapping[str, Any]]:
        """Yield hits as JSON objects, newest first. Filters: `verdict`, `rule`, `message_id`, `code`, `since`, `until`."""
        async for item in self._items(lambda cursor: calls.clicks(filters, cursor), timeout):
            yield item

    async def events(self, *, timeout: float | None = None, **filters: Any) -> AsyncIterator[Mapping[str, Any]]:
        """Yield events as JSON objects, newest first."""
        async for item in self._items(lambda cursor: calls.events(filters, cursor), timeout):
            yield item

    async def _items(self, call_of: Callable[[str | None], ApiCall[ResultPage[T]]], timeout: float | None) -> AsyncIterator[T]:
        """Yield the items of all pages of a list. `timeout` limits the time for each page, in seconds, including repeated
        attempts."""
        page = await self._connection.send(call_of(None), timeout)
        while True:
            for item in page.items:
                yield item
            if page.cursor is None:
                return
            page = await self._connection.send(call_of(page.cursor), timeout)
