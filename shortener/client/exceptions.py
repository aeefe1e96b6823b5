"""The errors of the client. Every error that a call raises is a `ClientError`.

`ResponseError` and its subclasses are errors that the service returned. Their `error_code` is the same in all releases; /docs
lists all codes. The other errors are raised if there was no usable response.
"""
# Tested by tests/client/test_async_client.py

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shortener.plurals import counted

if TYPE_CHECKING:
    from shortener.client.models import RewrittenText, SkippedRecipient


class ClientError(Exception):
    """Base class of all errors of the client."""


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """One invalid field of a request.

    `position` is the index of the first invalid character in the text. `index` is the index of the message in a bulk request, and
    `recipient` is the index of the recipient in the message. All indexes begin at 0."""

    field: str
    reason: str
    error_code: str | None = None
    position: int | None = None
    index: int | None = None
    recipient: int | None = None


class ResponseError(ClientError):
    """The service returned an error. `retry_after` is the `Retry-After` header of the response, in seconds."""

    def __init__(
        self,
        status_code: int,
        error_code: str,
        description: str,
        details: Sequence[ErrorDetail] = (),
        *,
        request_id: str | None = None,
        retry_after: float | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        self.status_code = status_code
        self.error_code = error_code
        self.description = description
        self.details = tuple(details)
        self.request_id = request_id
        self.retry_after = retry_after
        self.body = body or {}
        super().__init__(f"{status_code} {error_code or 'without error code'}: {description}")

    def __str__(self) -> str:
        # The text is created when it is needed: a bulk call may change the indexes in `details` after the error was created.
        return f"{super().__str__()}{self._first_detail()}"

    def _first_detail(self) -> str:
        if not self.details:
            return ""
        further = self._count_details() - 1
        rest = f"; {counted(further, 'further error')}, see `details`" if further else ""
        return f" ({self.details[0].field}: {self.details[0].reason}{rest})"

    def _count_details(self) -> int:
        """Return the number of all errors. The response lists at most 1,000 of them."""
        total = self.body.get("details_total")
        return total if isinstance(total, int) and total > len(self.details) else len(self.details)


class BadRequestError(ResponseError):
    """The request is not valid. A repeat gets the same response."""


class AuthenticationError(ResponseError):
    """The credential is missing, unknown, revoked or expired."""


class InsufficientBalanceError(ResponseError):
    """The balance of the application does not cover the cost of the messages. Nothing was stored."""


class PermissionDeniedError(ResponseError):
    """The credential does not have the permission for this call."""


class NotFoundError(ResponseError):
    """The resource does not exist, or it belongs to another application."""


class ConflictError(ResponseError):
    """The request conflicts with stored data, for example a message_id that is used with another text."""


class RateLimitError(ResponseError):
    """The client sent too many requests. Try again after `retry_after` seconds."""


class ServerFailureError(ResponseError):
    """The service, or a proxy in front of it, failed or is not available."""


class UnexpectedResponseError(ClientError):
    """The response comes from another service, or from a release of this service that the client does not support."""


class ConnectionFailedError(ClientError):
    """No connection was made, or it ended before the complete response arrived."""


class DeadlineError(ClientError):
    """The service did not respond before the deadline. `__cause__` is usually the error of the latest attempt that failed before
    its time limit. If all attempts reached their time limits, it is the error of such a limit; None if there was no attempt."""


class BulkError(ClientError):
    """A chunk of a bulk call failed. `__cause__` is the error of this chunk.

    `results` are the texts of the chunks before it. `failed_at` is the index of the first recipient without a result, counted
    over all messages."""

    def __init__(self, results: Sequence[RewrittenText | SkippedRecipient], total: int, cause: ClientError) -> None:
        self.results = list(results)
        self.failed_at = len(self.results)
        super().__init__(f"{self.failed_at} of {counted(total, 'recipient')} were rewritten, then: {cause}")


_BY_STATUS: Mapping[int, type[ResponseError]] = {
    401: AuthenticationError,
    402: InsufficientBalanceError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    429: RateLimitError,
}


def response_error(
    status_code: int, body: Mapping[str, Any] | None, *, request_id: str | None = None, retry_after: float | None = None
) -> ResponseError:
    """Return the error of a response. `body` is the JSON object in its body, or None if there is none."""
    body = body or {}
    kind = _BY_STATUS.get(status_code, ServerFailureError if status_code >= 500 else BadRequestError)
    listed = body.get("details")
    details = [_detail(one) for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
    code, description = body.get("error_code"), body.get("description")
    return kind(
        status_code,
        code if isinstance(code, str) else "",
        description if isinstance(description, str) else "the response has no error of this service; a proxy may have sent it",
        details,
        request_id=request_id,
        retry_after=retry_after,
        body=body,
    )


def _detail(fields: Mapping[str, Any]) -> ErrorDetail:
    return ErrorDetail(
        str(fields.get("field", "")),
        str(fields.get("reason", "")),
        fields.get("error_code"),
        fields.get("position"),
        fields.get("index"),
        fields.get("recipient"),
    )
