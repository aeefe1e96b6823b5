"""Every error that a caller can see, in one table.

`ErrorCode` is the stable part of the interface: names never change, the API docs and the OpenAPI document are made from it.
A part raises `ApiError` (or an error of its own that the rewrite, tracker or intake turns into one); the web layer turns an
`ApiError` into the JSON body of the contract. Anything else that escapes becomes `INTERNAL_ERROR` and is logged, never shown.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class ErrorCode(enum.Enum):
    """Name = `error_code`; value = (HTTP status, what it means to the caller)."""

    INVALID_JSON = (400, "The body is not valid JSON, or not an object.")
    INVALID_REQUEST = (400, "A field is missing, unknown or has an unusable value; `details` names each one.")
    INVALID_TRACK_DIRECTIVE = (
        400,
        "A #track or #trackurl directive is malformed; position and reason are in `details`.",
    )
    INVALID_TRACK_URL = (400, "A URL to be tracked is unusable; position and reason are in `details`.")
    INVALID_RECIPIENT = (400, "A recipient is not an E.164 number such as +14155550100.")
    BATCH_TOO_LARGE = (400, "More recipients or reports in one request than BATCH_LIMIT allows.")
    UNKNOWN_PLACEHOLDER = (
        400,
        "A tracker's URL holds a placeholder that does not exist, or one in another system's style.",
    )
    INVALID_TRACKER_URL = (400, "A tracker's URL is unusable, or a placeholder stands in its scheme, host or port.")
    FORBIDDEN_TARGET = (400, "A tracker's URL leads to a private, loopback, link-local or otherwise forbidden address.")
    UNEXPANDED_PLACEHOLDER = (
        400,
        "A value arrived as a literal placeholder such as {click_id}: the tracker did not fill it in.",
    )
    INVALID_CURSOR = (400, "The page cursor is not one that this service gave out.")
    UNAUTHORIZED = (401, "The credential is missing, unknown, revoked or expired.")
    FORBIDDEN = (403, "The credential is right but lacks the permission for this call.")
    NOT_FOUND = (404, "There is no such resource, or it belongs to another application.")
    MESSAGE_NOT_FOUND = (404, "There is no message with this id in the application.")
    METHOD_NOT_ALLOWED = (405, "The path exists, but not for this method.")
    MESSAGE_ID_CONFLICT = (409, "The message_id is already used for a message with other content.")
    IDEMPOTENCY_CONFLICT = (409, "The Idempotency-Key was already used for a request with other content.")
    CONVERSION_CONFLICT = (409, "The same conversion was already reported with another value or currency.")
    CONFLICT = (409, "The change collides with what is stored, for example a domain that another application owns.")
    BODY_TOO_LARGE = (413, "The request body is larger than BODY_LIMIT.")
    UNSUPPORTED_MEDIA_TYPE = (415, "The body's Content-Type is not one that this call takes.")
    RATE_LIMITED = (429, "Too many requests; try again after `Retry-After` seconds.")
    INTERNAL_ERROR = (500, "A fault of the service; it is logged, and the request may be repeated.")
    UNAVAILABLE = (
        503,
        "The store cannot take the request now; nothing was kept, try again after `Retry-After` seconds.",
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
    """One thing that is wrong: `field` is a path such as `messages.3.to`, `reason` is for a person, `position` counts
    characters from 0 into a text where that helps."""

    field: str
    reason: str
    position: int | None = None

    def body(self) -> dict[str, Any]:
        told: dict[str, Any] = {"field": self.field, "reason": self.reason}
        if self.position is not None:
            told["reason"] = f"position {self.position}: {self.reason}"
            told["position"] = self.position
        return told


class ApiError(Exception):
    """A request is refused; carries everything that the caller is told."""

    def __init__(
        self,
        code: ErrorCode,
        description: str | None = None,
        details: Iterable[Detail] = (),
        *,
        retry_after: int | None = None,
    ) -> None:
        self.code = code
        self.description = description or code.meaning
        self.details = tuple(details)
        self.retry_after = retry_after
        super().__init__(f"{code.name}: {self.description}")

    def body(self) -> dict[str, Any]:
        """The JSON body of the contract: status, error_code, description, details."""
        return {
            "status": False,
            "error_code": self.code.name,
            "description": self.description,
            "details": [detail.body() for detail in self.details],
        }


class StoreUnavailable(Exception):
    """The database cannot take or answer this now (down, locked, full); nothing of the transaction was kept."""
