"""All errors that a caller of the API can receive, in one table.

The names of `ErrorCode` never change. The API documentation is generated from the table. A module raises `ApiError`, or an error
class of its own, which its caller converts to an `ApiError`. The web layer converts an `ApiError` to the JSON body of an error
response. For every other exception, the web layer writes a log line and responds with INTERNAL_ERROR, without details.
"""

# Tested by tests/web/test_openapi.py and tests/web/test_callers.py

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_DETAILS = 1000  # The maximum number of details in one error response.
MAX_FIELD_LENGTH = 200  # The maximum number of characters of a field path in an error detail.
MAX_REASON_LENGTH = 500  # The maximum number of characters of a reason in an error detail.
RETRY_AFTER_SECONDS = 2  # The Retry-After header of a response while the database is unavailable.
RETRY_AFTER_LONG_READ_SECONDS = 30  # The Retry-After header of a response to a request whose query took too long.


class ErrorCode(enum.Enum):
    """The error codes. The name of a member is the `error_code`. Its value is the HTTP status, and the meaning for the caller."""

    INVALID_JSON = (400, "The body is not valid JSON, or not a JSON object.")
    INVALID_REQUEST = (400, "A field is missing, unknown or has an invalid value; `details` names each field.")
    INVALID_TRACK_DIRECTIVE = (
        400,
        "A #track or #trackurl directive is malformed; `details` has the position and the reason.",
    )
    INVALID_TRACK_URL = (400, "A URL to track is not usable; `details` has the position and the reason.")
    INVALID_RECIPIENT = (400, "A recipient is not an E.164 number such as +14155550100.")
    SENDER_NOT_ALLOWED = (
        400,
        "Networks do not deliver messages with this sender to the recipient's country, and the application rejects such senders "
        "(sender_rules).",
    )
    INVALID_BODY = (400, "The body of a send call is not a JSON object.")
    INVALID_TO = (400, "`to` of a send call is not a list of E.164 numbers such as +14155550100.")
    INVALID_MESSAGE = (400, "`message` of a send call is not a text of 1 to 20,000 characters.")
    INVALID_SENDER = (
        400,
        "`sender_id` of a send call is neither a number nor 3 to 11 letters and digits that start with a letter.",
    )
    TOO_MANY_RECIPIENTS = (400, "A send call has more than 100 recipients, or more than BATCH_LIMIT.")
    BATCH_TOO_LARGE = (400, "The request has more recipients or reports than BATCH_LIMIT allows.")
    UNKNOWN_PLACEHOLDER = (
        400,
        "The URL of a tracker contains a placeholder that does not exist, or one in the syntax of another system.",
    )
    INVALID_TRACKER_URL = (400, "The URL of a tracker is not usable, or it has a placeholder in its scheme, host or port.")
    FORBIDDEN_TARGET = (
        400,
        "The URL of a tracker or callback leads to an address that is not public (ALLOW_PRIVATE_TARGETS), or its scheme is "
        "disabled (ALLOW_HTTP_TARGETS).",
    )
    UNEXPANDED_PLACEHOLDER = (
        400,
        "An id, an action or a status is a literal placeholder such as {click_id}: the tracker did not replace it.",
    )
    INVALID_CURSOR = (400, "The page cursor was not returned by this service.")
    UNAUTHORIZED = (401, "The credential is missing, unknown, revoked or expired.")
    INSUFFICIENT_BALANCE = (
        402,
        "The balance of the application is lower than the cost of the request. Nothing was stored; `cost` and `balance` have the "
        "amounts.",
    )
    FORBIDDEN = (403, "The credential is valid but does not have the permission for this call.")
    NOT_FOUND = (404, "The resource does not exist, or it belongs to another application.")
    UNKNOWN_HOST = (404, "The Host header names no host that serves the API.")
    MESSAGE_NOT_FOUND = (404, "The application has no message with this id.")
    METHOD_NOT_ALLOWED = (405, "The path exists, but not for this method.")
    MESSAGE_ID_CONFLICT = (409, "The message_id is already used for a message with different content.")
    IDEMPOTENCY_CONFLICT = (409, "The Idempotency-Key was already used for a request with different content.")
    REQUEST_IN_PROGRESS = (
        409,
        "The first request with this Idempotency-Key is still being performed, or was interrupted. Repeat the request after "
        "`Retry-After` seconds.",
    )
    CONVERSION_CONFLICT = (
        409,
        "The action was already reported for the message with another value. Without a transaction_id, the service cannot know "
        "whether the new value is a change or a second conversion.",
    )
    CONFLICT = (409, "The change conflicts with existing data, for example a domain that another application has.")
    OPTED_OUT = (409, "The recipient refused further messages of this application.")
    NO_PRICE = (409, "The application is prepaid, and there is no price for the number of the recipient.")
    NO_USABLE_DOMAIN = (
        409,
        "No domain of the application can be used for new links: all are disabled or removed, and allow_shared_host is off.",
    )
    BODY_TOO_LARGE = (413, "The request body is larger than BODY_LIMIT.")
    RATE_LIMITED = (
        429,
        "There were too many requests in a short time: with wrong credentials, for unknown codes, with one API key or postback "
        "key, or from one application. Try again after `Retry-After` seconds.",
    )
    EXPORT_IN_PROGRESS = (
        429,
        "Another CSV export of the same session of the portal is running. Try again after `Retry-After` seconds.",
    )
    UNSUPPORTED_MEDIA_TYPE = (415, "This call does not accept the Content-Type of the body.")
    DB_ERROR = (500, "The database is not available. Nothing was stored or queued, so the send call can be repeated.")
    INTERNAL_ERROR = (500, "The service failed. It logged the error, and the request can be repeated.")
    UNAVAILABLE = (
        503,
        "The database is not available; no message was stored or sent. Try again after `Retry-After` seconds.",
    )
    OUTCOME_UNKNOWN = (
        503,
        "The connection to the database ended while the request was being stored, so it is not known whether it was stored. If the "
        "response has no `Retry-After`, a repeat may perform it a second time.",
    )

    @property
    def http_status(self) -> int:
        status: int = self.value[0]
        return status

    @property
    def meaning(self) -> str:
        text: str = self.value[1]
        return text


@dataclass(frozen=True, slots=True)
class Detail:
    """One error in the fields of a request.

    `field` is a path such as `messages.3.to`. `reason` is a text that explains the error. `position` counts characters from 0 in a
    text. `index` is the index of the message in a request with several messages, and `recipient` the index of its recipient. `code`
    is the error code of this single error; it is set if a request can have several errors with different codes."""

    field: str
    reason: str
    position: int | None = None
    index: int | None = None
    recipient: int | None = None
    code: ErrorCode | None = None

    def body(self) -> dict[str, Any]:
        """Return the error detail as a JSON object. If the error has a position in a text, the `reason` begins with it."""
        fields: dict[str, Any] = {"field": shorten(self.field, MAX_FIELD_LENGTH)}
        if self.code is not None:
            fields |= {"index": self.index, "recipient": self.recipient, "error_code": self.code.name, "position": None}
        reason = self.reason if self.position is None else f"position {self.position}: {self.reason}"
        fields["reason"] = shorten(reason, MAX_REASON_LENGTH)
        if self.position is not None:
            fields["position"] = self.position
        return fields


class ApiError(Exception):
    """Raised to reject a request. The exception contains everything that the error response contains."""

    def __init__(
        self,
        code: ErrorCode,
        description: str | None = None,
        details: Iterable[Detail] = (),
        *,
        retry_after: int | None = None,
        hidden_details: int = 0,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """`description` defaults to the meaning of the code. `retry_after` is the Retry-After header in seconds.

        `hidden_details` is the number of further errors that were counted but have no detail. `fields` are further fields of the
        response body that are specific to the code."""
        self.code = code
        self.description = description or code.meaning
        self.details = tuple(details)
        self.details_total = len(self.details) + hidden_details
        self.retry_after = retry_after
        self.fields = fields or {}
        super().__init__(f"{code.name}: {self.description}")

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the error response: status, error_code, description, details.

        It contains at most MAX_DETAILS details. If there are more, `details_total` is the number of all details."""
        body: dict[str, Any] = {
            "status": False,
            "error_code": self.code.name,
            "description": self.description,
            "details": [detail.body() for detail in self.details[:MAX_DETAILS]],
            **self.fields,
        }
        if self.details_total > len(body["details"]):
            body["details_total"] = self.details_total
        return body


def shorten(text: str, length: int) -> str:
    """Return the text, cut to at most `length` characters. Without a limit, the input of a caller could make a response very
    long."""
    return text if len(text) <= length else text[: length - 3] + "..."


class StoreUnavailable(Exception):
    """Raised if the database is down, locked or full. No part of the transaction is stored, unless the error is the subclass
    CommitUncertain: then the transaction may be stored."""


class CommitUncertain(StoreUnavailable):
    """Raised if the connection to the database ended during COMMIT. It is not known whether the transaction is stored."""


class ReadTooLong(StoreUnavailable):
    """Raised if the database did not complete a query in time: MAX_READ_SECONDS on SQLite, DATABASE_TIMEOUT on PostgreSQL."""


class DatabaseInUse(StoreUnavailable):
    """Raised if another process serves from the SQLite database. Only one process can use it."""


def unavailable_error(error: StoreUnavailable, *, may_repeat: bool = False) -> ApiError:
    """Return the error response for a request that failed with `error`: OUTCOME_UNKNOWN if the request may be stored, and
    UNAVAILABLE otherwise.

    `may_repeat` is true if a repeat of a stored request changes nothing. If it is false, an OUTCOME_UNKNOWN response has no
    Retry-After: many clients automatically repeat a request after a 503 with this header."""
    if isinstance(error, CommitUncertain):
        return ApiError(ErrorCode.OUTCOME_UNKNOWN, retry_after=RETRY_AFTER_SECONDS if may_repeat else None)
    if isinstance(error, ReadTooLong):
        return ApiError(ErrorCode.UNAVAILABLE, _READ_TOO_LONG, retry_after=RETRY_AFTER_LONG_READ_SECONDS)
    return ApiError(ErrorCode.UNAVAILABLE, retry_after=RETRY_AFTER_SECONDS)


_READ_TOO_LONG = (
    "The database did not complete the query in time. Try again after `Retry-After` seconds. If this error occurs again, choose a "
    "shorter period or more filters."
)
