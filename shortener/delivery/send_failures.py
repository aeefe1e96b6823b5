"""This module describes failed requests to receivers: the error name, an explanation as text, and whether this host is the cause.

`explain` converts every exception of aiohttp. No text contains the URL of the request.
"""

# Tested by tests/delivery/test_sender.py

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from shortener.delivery.guard import ForbiddenTarget
from shortener.model import record

_ERROR_CLASSES = {
    errno.ECONNREFUSED: "connection_refused",
    errno.ECONNRESET: "connection_reset",
    errno.ECONNABORTED: "connection_reset",
    errno.EPIPE: "connection_reset",
    errno.ETIMEDOUT: "timeout",
    errno.ENETUNREACH: "network_unreachable",
    errno.EHOSTUNREACH: "network_unreachable",
    errno.EAFNOSUPPORT: "network_unreachable",
}

#: Error numbers that only this host can cause: no file descriptors, memory, buffers or ports are left, or a local firewall blocks
#: the connection.
_LOCAL_ERRORS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.EADDRNOTAVAIL,
        errno.EADDRINUSE,
        errno.EPERM,
        errno.EACCES,
    }
)

NO_SUCH_NAME = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})
_ERRNO = re.compile(r"\[Errno (\d+)\]")

#: The possible values of `SendResult.error`. The last four mean that this host or its proxy failed.
ERRORS = (
    "timeout",
    "dns_error",
    "connection_refused",
    "connection_reset",
    "network_unreachable",
    "tls_error",
    "blocked_address",
    "protocol_error",
    "too_large",
    "internal_error",
    "proxy_error",
    "resolver_down",
    "no_slot",
    "local_error",
)


@record
class SendFailure:
    """The reason why a request failed. `error` is one of ERRORS, and `detail` is an explanation as text."""

    error: str
    detail: str
    is_local: bool = False


class ResponseTooLarge(aiohttp.ClientPayloadError):
    """The error for a response with more than `MAX_WIRE_BYTES` bytes."""


def explain(error: Exception, unresolved: Callable[[], SendFailure], *, is_https: bool) -> SendFailure:
    """Convert an exception of aiohttp to a failure.

    `unresolved` returns the failure of a look-up to which the resolver did not respond. `is_https` is true if the URL of the
    request begins with https."""
    match error:
        case ForbiddenTarget():
            return SendFailure("blocked_address", str(error))
        case aiohttp.ClientProxyConnectionError():
            return SendFailure("proxy_error", "the proxy (DELIVERY_PROXY) is not reachable", is_local=True)
        case aiohttp.ClientHttpProxyError(status=403 | 407):
            return SendFailure("proxy_error", f"the proxy (DELIVERY_PROXY) refused the request: {error.status}", is_local=True)
        case aiohttp.ClientHttpProxyError():
            return SendFailure("connection_refused", f"the proxy could not connect: {error.status}")
        case aiohttp.ClientConnectorError(os_error=ForbiddenTarget() as forbidden):
            return SendFailure("blocked_address", str(forbidden))
        case aiohttp.InvalidURL():
            return SendFailure("blocked_address", "the host is not valid")
        case aiohttp.ClientConnectorDNSError(os_error=socket.gaierror(errno=code)) | socket.gaierror(errno=code):
            if code in NO_SUCH_NAME:
                return SendFailure("dns_error", "the name does not exist")
            return unresolved()
        case ResponseTooLarge():
            return SendFailure("too_large", str(error))
        case aiohttp.ClientResponseError(__cause__=HttpProcessingError() as cause) | (HttpProcessingError() as cause):
            return SendFailure("protocol_error", f"not a valid HTTP response: {cause.message}")
        case aiohttp.ClientPayloadError():
            return SendFailure("protocol_error", "the body is incomplete or malformed")
    if (tls_reason := _tls_reason(error, is_https)) is not None:
        return SendFailure("tls_error", tls_reason)
    match error:
        case aiohttp.ServerDisconnectedError():
            return SendFailure("connection_reset", "the connection was closed without a response")
        case OSError() | aiohttp.ClientConnectionError():
            return _explain_connection_error(error)
    # The request can never be sent. The failure must count as an attempt, because otherwise the delivery would be attempted without
    # end.
    return SendFailure("internal_error", f"the request could not be sent ({type(error).__name__})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception and all exceptions that caused it, directly or indirectly."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.append(one)
            yield one
            waiting += [one.__cause__, one.__context__, getattr(one, "os_error", None)]


def _tls_reason(error: Exception, is_https: bool) -> str | None:
    """Return an explanation of the reason why TLS failed. Return None if the error has another cause."""
    for cause in _causes(error):
        if isinstance(cause, aiohttp.ClientError):
            continue  # some errors of aiohttp are also certificate errors, but contain no reason
        if isinstance(cause, ssl.CertificateError):
            return f"the certificate is not valid: {getattr(cause, 'verify_message', '') or 'wrong host or unknown issuer'}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {(cause.reason or 'protocol error').replace('_', ' ').lower()}"
    if isinstance(error, aiohttp.ClientSSLError):
        return "TLS failed"
    is_handshake = isinstance(error, aiohttp.ClientConnectorError) and is_https
    if is_handshake and not _error_numbers(error):
        return "the connection was closed during the TLS handshake"
    return None


def _error_numbers(error: Exception) -> list[int]:
    """Return the operating system error numbers of a failed connection.

    If several addresses of a host failed with different errors, the numbers are only in the text of the exception."""
    number = getattr(error, "errno", None)
    return [number] if number is not None else [int(found) for found in _ERRNO.findall(str(error))]


def _explain_connection_error(error: Exception) -> SendFailure:
    numbers = _error_numbers(error)
    # If there are several errors, prefer an error that the receiver caused. The error "network unreachable" may only mean that this
    # host has no IPv6.
    for number in sorted(numbers, key=lambda number: _ERROR_CLASSES.get(number) == "network_unreachable"):
        if number in _ERROR_CLASSES:
            return SendFailure(_ERROR_CLASSES[number], os.strerror(number))
    for number in numbers:
        if number in _LOCAL_ERRORS:
            return SendFailure("local_error", os.strerror(number), is_local=True)
    return SendFailure("connection_reset", os.strerror(numbers[0]) if numbers else "the connection was closed")
