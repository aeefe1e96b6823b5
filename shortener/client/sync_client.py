"""This module contains `Client`, the client for code without an event loop.

`Client` runs the calls of `AsyncClient` in one background thread. A call of this kind can be cancelled, so it ends at its
deadline even if a name look-up hangs or a response arrives byte by byte. An ordinary blocking call could not be interrupted then.
The thread starts with the first call. A process that forks (gunicorn, Celery) can create the client before the fork: each process
gets its own thread and connections.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, Unpack, cast, overload

import httpx

from shortener.client import calls
from shortener.client.bulk import BulkMessage, BulkRewrite, OnFailure, OnInvalid, Progress, new_key
from shortener.client.calls import ApiCall, Grouping, ResultPage, RewriteOptions
from shortener.client.connection import DEFAULT_TIMEOUT_SECONDS, Connection, check_parameters
from shortener.client.exceptions import ClientError
from shortener.client.loop_thread import LoopThread
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


class Client:
    """A client of the HTTP API. Threads can share it. Use it with `with`, or call `close`.

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
        check_parameters(base_url, api_key=api_key, tracker_token=tracker_token, timeout=timeout)

        def connect() -> Connection:
            return Connection(
                base_url,
                api_key=api_key,
                tracker_token=tracker_token,
                timeout=timeout,
                retry=retry or RetryPolicy(),
                headers=headers or {},
                transport=transport,
            )

        self._thread = LoopThread(connect)
        self._bulk = partial(BulkRewrite, batch_limit=batch_limit, extra_schemes=extra_schemes)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the background thread. A later call opens and starts them again."""
        self._thread.close()

    @overload
    def rewrite(
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
    def rewrite(
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

    def rewrite(
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
        texts = cast(list[RewrittenText], self._run(rewrite, None, timeout))
        return texts[0] if is_single else texts

    def rewrite_many(
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
        return self._run(rewrite, progress, timeout)

    def _run(
        self, rewrite: BulkRewrite, progress: Progress | None, timeout: float | None
    ) -> list[RewrittenText | SkippedRecipient]:
        while (call := rewrite.next_call()) is not None:
            try:
                rewrite.succeeded(self._thread.send(call, timeout, rewrite.remaining_seconds()))
            except ClientError as error:
                rewrite.failed(error)
            if progress is not None:
                progress(len(rewrite.results), rewrite.total)
        return rewrite.results

    def preview(
        self,
        *,
        to: str,
        body: str,
        from_: str | None = None,
        timeout: float | None = None,
        **options: Unpack[RewriteOptions],
    ) -> RewrittenText:
        """Return what `rewrite` would return, with segments, warnings and sample codes for the links. Nothing is stored."""
        return self._thread.send(calls.preview(to, body, from_, options), timeout)

    def send(
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
        return self._thread.send(call, timeout)

    def status(self, message_id: str, *, timeout: float | None = None) -> MessageInfo:
        """Return a message with its links and conversions."""
        return self._thread.send(calls.status(message_id), timeout)

    def report_delivery(self, *reports: Mapping[str, Any], timeout: float | None = None) -> ReportSummary:
        """Report delivery states, such as `{"message_id": "m-1", "state": "DELIVERED"}`. Each report is accepted or refused
        separately."""
        return self._thread.send(calls.report_delivery(reports), timeout)

    def report_conversion(
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
        return self._thread.send(calls.report_conversion(parameters), timeout)

    def link(self, code: str, *, timeout: float | None = None) -> LinkInfo:
        """Return a short link."""
        return self._thread.send(calls.link(code), timeout)

    def update_link(self, code: str, *, timeout: float | None = None, **changes: Any) -> LinkInfo:
        """Change a link: `url`, `expires_at`, `fallback_url` (None removes it) or `enabled`. Return the changed link."""
        return self._thread.send(calls.update_link(code, changes), timeout)

    def statistics(self, *, timeout: float | None = None, **filters: Any) -> FigureTotals:
        """Return the totals of a period. Filters: `since`, `until`, `campaign`, `source`, `basis`, `tz`."""
        return self._thread.send(calls.statistics(filters), timeout)

    def statistics_by(self, grouping: Grouping, *, timeout: float | None = None, **filters: Any) -> Iterator[Mapping[str, Any]]:
        """Yield one JSON object with figures for each day, country, campaign, destination, label, hour or action. `grouping`
        selects which of them."""
        yield from self._items(lambda cursor: calls.statistics_by(grouping, filters, cursor), timeout)

    def messages(self, *, timeout: float | None = None, **filters: Any) -> Iterator[MessageInfo]:
        """Yield messages, newest first. Filters: `state`, `to`, `campaign`, `source`, `since`, `until`, `limit` (of one page)."""
        yield from self._items(lambda cursor: calls.messages(filters, cursor), timeout)

    def links(self, *, timeout: float | None = None, **filters: Any) -> Iterator[LinkInfo]:
        """Yield links, beginning with the links of the newest message. Filters: `campaign`, `url`, `label`, `domain`, `enabled`,
        `expired`, `since`."""
        yield from self._items(lambda cursor: calls.links(filters, cursor), timeout)

    def conversions(self, *, timeout: float | None = None, **filters: Any) -> Iterator[ConversionInfo]:
        """Yield conversions, newest first. Filters: `campaign`, `action`, `status`, `disposition`, `since`, `until`."""
        yield from self._items(lambda cursor: calls.conversions(filters, cursor), timeout)

    def clicks(self, *, timeout: float | None = None, **filters: Any) -> Iterator[Mapping[str, Any]]:
        """Yield hits as JSON objects, newest first. Filters: `verdict`, `rule`, `message_id`, `code`, `since`, `until`."""
        yield from self._items(lambda cursor: calls.clicks(filters, cursor), timeout)

    def events(self, *, timeout: float | None = None, **filters: Any) -> Iterator[Mapping[str, Any]]:
        """Yield events as JSON objects, newest first."""
        yield from self._items(lambda cursor: calls.events(filters, cursor), timeout)

    def _items(self, call_of: Callable[[str | None], ApiCall[ResultPage[T]]], timeout: float | None) -> Iterator[T]:
        """Yield the items of all pages of a list. `timeout` limits the time for each page, in seconds, including repeated
        attempts."""
        page = self._thread.send(call_of(None), timeout)
        while True:
            yield from page.items
            if page.cursor is None:
                return
            page = self._thread.send(call_of(page.cursor), timeout)
