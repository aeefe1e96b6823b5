"""This module creates the bodies of errors in vendors' formats. They contain the vendor's fields, and also the fields that every
error of this service has.

Clients of a vendor read the vendor's fields. Other callers can read `error_code`, as in all errors of this service.
"""
# Tested by tests/web/vendors/test_infobip.py and tests/web/vendors/test_xoxzo.py

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shortener.errors import ErrorCode

#: The `messageId` of errors in Infobip's format, by HTTP status.
_INFOBIP_IDS: Mapping[int, str] = {
    400: "BAD_REQUEST",
    401: "UNAUTHORIZED",
    402: "NOT_ENOUGH_CREDITS",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    409: "CONFLICT",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    429: "TOO_MANY_REQUESTS",
    503: "SERVICE_UNAVAILABLE",
}


def infobip_error(code: ErrorCode, body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of an error in both of Infobip's forms: `requestError` (older), and `errorCode` with `violations` (newer).

    Infobip's current clients, which use version 3 of the send call, read the newer form."""
    exception: dict[str, Any] = {
        "messageId": _INFOBIP_IDS.get(code.http_status, "GENERAL_ERROR"),
        "text": body["description"],
    }
    details = _invalid_fields(code, body)
    if details:
        exception["validationErrors"] = _by_field(details)
        first = details[0]
        exception["text"] = f"{body['description']} {first['field']}: {first['reason']}"
    violations = [{"property": detail["field"], "violation": detail["reason"]} for detail in details]
    current = {
        "errorCode": f"E{code.http_status}",
        "action": "Check the fields of `violations`." if violations else "See the description.",
        "violations": violations,
        "resources": [],
    }
    return {"requestError": {"serviceException": exception}, **current, **body}


def xoxzo_error(code: ErrorCode, body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of an error in Xoxzo's form: a list of reasons for each invalid field, or a text in `detail`."""
    if details := _invalid_fields(code, body):
        return {**_by_field(details), **body}
    if code.http_status in (400, 402, 409):
        return {"non_field_errors": [body["description"]], **body}
    return {"detail": body["description"], **body}


def _invalid_fields(code: ErrorCode, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the details of an error that refer to fields of the request. For INSUFFICIENT_BALANCE, return none, because its
    details are amounts."""
    details: list[dict[str, Any]] = body["details"]
    return [] if code is ErrorCode.INSUFFICIENT_BALANCE else details


def _by_field(details: list[dict[str, Any]]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for detail in details:
        reasons.setdefault(detail["field"], []).append(detail["reason"])
    return reasons
