"""This module contains the HTTP connection pool, and the loop that repeats a call until it succeeds, fails or its deadline
passes.

This is the only module that uses httpx: it maps every exception of httpx to a `ClientError`. At the deadline, the attempt in
progress is cancelled, even if a name look-up hangs or a response arrives byte by byte.
"""
# Tested by tests/client/test_async_client.py

from __future__ import annotations

import functools
import ipaddress
import json
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
import httpx

from shortener import __version__
from shortener.client.calls import ApiCall
from shortener.client.exceptions import (
    ClientError,
    ConnectionFailedError,
    DeadlineError,
    UnexpectedResponseError,
    response_error,
)
from shortener.client.retry import Attempts, RetryPolicy, parse_retry_after

T = TypeVar("T")

DEFAULT_TIMEOUT_SECONDS = 10.0


def check_parameters(base_url: str, *, api_key: str, tracker_token: str, timeout: float) -> None:
    """Raise ValueError if a parameter of a client is not valid."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("base_url must be http://HOST or https://HOST, with an optional port and path")
    for name, credential in (("api_key", api_key), ("tracker_token", tracker_token)):
        if not credential.isascii() or not credential.isprintable() or " " in credential:
            raise ValueError(f"{name} must contain only printable ASCII characters")
    if timeout <= 0:
        raise ValueError("timeout must be positive")


class Connection:
    """An HTTP client for one service, with credentials and retries. All calls must be made in the same event loop."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str,
        tracker_token: str,
        timeout: float,
        retry: RetryPolicy,
        headers: Mapping[str, str],
        transport: httpx.AsyncBaseTransport | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_parameters(base_url, api_key=api_key, tracker_token=tracker_token, timeout=timeout)
        self._timeout = timeout
        self._retry = retry
        self._clock = clock
        self._api_key = api_key
        self._tracker_token = tracker_token
        self._http = httpx.AsyncClient(
            base_url=base_url.rstrip("/"),
            headers={"User-Agent": f"sms-shortener-client/{__version__}", "Accept": "application/json", **headers},
            transport=transport,
            # A proxy that the environment names cannot reach the loopback addresses of this machine, so it is not used for them.
            trust_env=not _is_loopback(urlsplit(base_url).hostname or ""),
            verify=_tls_context(),
        )

    async def send(self, call: ApiCall[T], timeout: float | None = None, remaining: float | None = None) -> T:
        """Send a call, and repeat it until it succeeds or must not be repeated (see retry.py). Raise ClientError if the call
        fails or its deadline passes.

        `timeout` is the time limit of the call in seconds; None selects the default of the connection. `remaining` is the time in
        seconds until another deadline, or None; the earlier of the two limits applies."""
        seconds = self._timeout if timeout is None else timeout
        seconds = seconds if remaining is None else min(seconds, remaining)
        request_headers = self._headers(call)
        attempts = Attempts(self._retry, self._clock() + seconds)
        while True:
            try:
                return await self._attempt(call, request_headers, attempts.time_for_attempt(self._clock()))
            except ClientError as error:
                failure = error
            await anyio.sleep(attempts.delay_after(failure, self._clock()))

    async def close(self) -> None:
        await self._http.aclose()

    def _headers(self, call: ApiCall[Any]) -> dict[str, str]:
        name, credential = ("X-Api-Token", self._tracker_token) if call.uses_tracker_token else ("X-API-Key", self._api_key)
        if not credential:
            raise ValueError(f"this call requires Client(..., {'tracker_token' if call.uses_tracker_token else 'api_key'}=...)")
        headers = {name: credential}
        if call.content is not None:
            headers["Content-Type"] = "application/json"
        if call.key is not None:
            headers["Idempotency-Key"] = call.key
        return headers

    async def _attempt(self, call: ApiCall[T], headers: Mapping[str, str], seconds: float) -> T:
        try:
            with anyio.fail_after(seconds):
                response = await self._http.request(
                    call.method,
                    call.path,
                    params=call.query or None,
                    content=call.content,
                    headers=headers,
                    timeout=seconds,
                )
        except (TimeoutError, httpx.TimeoutException) as error:
            raise DeadlineError("the service did not respond in time") from error
        except httpx.DecodingError as error:
            raise UnexpectedResponseError(f"the response cannot be decoded: {error}") from error
        except httpx.TransportError as error:
            origin = f"{self._http.base_url.scheme}://{self._http.base_url.netloc.decode()}"
            raise ConnectionFailedError(f"the connection to {origin} failed: {error or type(error).__name__}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnexpectedResponseError(f"the request failed: {error}") from error
        return _read(call, response)


def _read(call: ApiCall[T], response: httpx.Response) -> T:
    body: Any = None
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        if response.is_success:
            raise UnexpectedResponseError(f"the response with the status {response.status_code} is not JSON") from None
    if response.is_success:
        return call.read(body)
    if response.status_code < 400:
        raise UnexpectedResponseError(f"the response has the status {response.status_code}, so base_url may be wrong")
    raise response_error(
        response.status_code,
        body if isinstance(body, Mapping) else None,
        request_id=response.headers.get("X-Request-Id"),
        retry_after=parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC)),
    )


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Return the TLS context. All clients share one, because reading the certificates takes more time than most calls."""
    return httpx.create_ssl_context()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
