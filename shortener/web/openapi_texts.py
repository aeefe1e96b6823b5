"""The hand-written texts of the OpenAPI document: introduction, credentials, path parameters, headers and the redirect."""
# Tested by tests/web/test_openapi.py

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shortener.web.callers import Caller
from shortener.web.operation_ids import operation_id

REF = "#/components/schemas/"

ABOUT = """
A self-hosted link shortener and click tracker for SMS.

- A send pipeline sends texts to the API and receives them with a separate short link for each recipient.
- The first click of a message moves it to the state CLICKTHRU. The service sends this event to your trackers. A tracker is an
  endpoint of yours that receives events.
- A tracker reports conversions with its tracker token.

Credentials are sent in a header. The send pipeline and all endpoints that read data use an API key, in any of four headers.
Endpoints that report conversions use a tracker token. A missing or wrong credential returns 401 before anything else happens. A
credential without the required permission returns 403. Data of another application returns 404.

All errors have the same body. Its `error_code` is stable: test it, not the text. Two error codes have the status 503.
`UNAVAILABLE`: a rewrite or a send stored nothing. Repeat the request after the number of seconds in `Retry-After`.
`OUTCOME_UNKNOWN` (rare): the connection to the database ended during the commit, so the request may be stored. Repeat a rewrite
or a send with the same `Idempotency-Key` or `message_id`; it is not stored or sent twice. After any other change, read the data
first. The response has a `Retry-After` only if the unchanged request can be repeated without being performed twice.

The examples use shell variables: BASE is the address of the service, KEY an API key and TOKEN the tracker token. Names such as
TRACKER_ID stand for ids that earlier responses contain.
"""

SECURITY_SCHEMES: Mapping[str, Any] = {
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "`X-API-Key: KEY`"},
    "Bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY` (Syniverse)"},
    "App": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "`Authorization: App KEY` (Infobip)"},
    "Basic": {
        "type": "http",
        "scheme": "basic",
        "description": "`Authorization: Basic`, with the application's id as user name and the API key as password (Infobip)",
    },
    "TrackerToken": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Api-Token",
        "description": "`X-Api-Token: TOKEN`, with the current tracker token, or the previous one until it expires (23 Telecom)",
    },
}
SECURITY: Mapping[Caller, list[dict[str, list[str]]]] = {
    Caller.ANYONE: [],
    Caller.API_KEY: [{"ApiKey": []}, {"Bearer": []}, {"App": []}, {"Basic": []}],
    Caller.TRACKER: [{"TrackerToken": []}],
    Caller.POSTBACK_KEY: [],
}

_MESSAGE_ID = "Id of the message, as the rewrite returned it."
#: Descriptions of the parameters in paths.
PATH_PARAMETERS: Mapping[str, str] = {
    "message_id": _MESSAGE_ID,
    "messageId": _MESSAGE_ID,
    "msgid": _MESSAGE_ID,
    "tracker_id": "Id of the tracker (the endpoint that receives events).",
    "delivery_id": "Id of the delivery.",
    "event_id": "Public id of the event, as in the header `webhook-id` of its deliveries.",
    "processKey": "Key of the conversion process. POST /ct/1/log/end/{messageId} returns it.",
    "code": "Code of the short link.",
    "gateway_id": "Id of the gateway.",
    "number": "Phone number in E.164, with the plus sign as %2B.",
    "report_key": "Report key of the gateway. It is the credential of the call.",
    "reference": "Reference of the message, as the service passed it to the gateway.",
    "postback_key": "Postback key of the application. It is the credential of the call.",
    "key_id": "Id of the postback key.",
    "api_key_id": "Id of the API key.",
    "update_id": "Id of the update of links.",
    "host": "Host as it was blocked, for example shop.example or *.shop.example.",
    "domain": "Host of the domain, for example go.brand.example.",
}

RETRY_AFTER_HEADER = {
    "Retry-After": {"description": "Number of seconds to wait before the request is repeated.", "schema": {"type": "integer"}}
}
#: Response headers by HTTP status.
ERROR_HEADERS: Mapping[int, Any] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    429: RETRY_AFTER_HEADER,
    503: RETRY_AFTER_HEADER,
}

TEXT = {"type": "string"}
_HTML = {"text/html": {"schema": TEXT}}

HANDSET = "Handset"
EVENTS = "Events"
#: Descriptions of the tags, which group the operations.
TAGS: Mapping[str, str] = {
    "Send pipeline": "Calls of a send pipeline: rewrite texts, send them, and report their delivery.",
    HANDSET: "The request that a phone sends when its user taps a short link.",
    "Messages": "Messages in the format of a vendor.",
    "Gateways": "Gateways send the messages of the service to phones, and report their delivery to the service.",
    "Trackers": "Trackers are your endpoints that receive events from the service. They report conversions back to the service.",
    "Deliveries": "Deliveries of events to trackers, with their attempts. Dead deliveries can be replayed.",
    "Application": "Settings, keys and secrets of the application that owns the API key.",
    "Conversions": "Recorded conversions, and reports that were refused.",
    "Conversion processes": "Conversion rates in the format of Infobip.",
    "Reading": "Messages, hits and events.",
    "Links": "Short links and their changes after sending, and blocked destination hosts.",
    "Domains": "Own domains for short links.",
    "Erasure": "Erasure of personal data.",
    "Statistics": "Figures of messages, clicks and conversions.",
    "Operation": "Liveness, readiness, metrics and this document.",
    EVENTS: "Requests that the service sends to trackers.",
}
#: The description of the redirect, which is not an `Endpoint`: clicks/redirect.py responds to it before the router of the API runs.
REDIRECT: Mapping[str, Any] = {
    "operationId": operation_id("GET", "/{code}"),
    "summary": "Follow a short link",
    "description": "A handset calls this when a person taps a link. The service stores every hit and redirects it. The first hit "
    "by a person is the click that moves the message to CLICKTHRU. Characters after the code that are neither letters nor digits "
    "are ignored. On a domain with a path, the code follows that path. HEAD gets the same "
    "response and never counts as a click.",
    "tags": [HANDSET],
    "security": [],
    "parameters": [
        {
            "name": "code",
            "in": "path",
            "required": True,
            "description": PATH_PARAMETERS["code"],
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9]{4,32}$"},
            "example": "8kVnq2LmRd",
        }
    ],
    "responses": {
        "302": {
            "description": "Redirects to the destination. An expired link redirects to its fallback URL, and a code that "
            "does not exist to the fallback URL of the domain.",
            "headers": {
                "Location": {"required": True, "schema": {"type": "string", "format": "uri"}},
                "Cache-Control": {"schema": {"const": "private, no-store"}},
                "Referrer-Policy": {"schema": TEXT},
                "X-Robots-Tag": {"schema": {"const": "noindex"}},
            },
        },
        "404": {
            "description": "No link has this code. The body is a short page for people, or an error if the path cannot be a code.",
            "content": {**_HTML, "application/json": {"schema": {"$ref": REF + "Error"}}},
        },
        "429": {
            "description": "The client requested too many codes that do not exist. Requests for existing links are not limited.",
            "headers": RETRY_AFTER_HEADER,
            "content": _HTML,
        },
        "410": {"description": "The link expired or is disabled. The body is a short page for people.", "content": _HTML},
        "503": {
            "description": "Neither the database nor the cache responds. The body is a short page for people.",
            "headers": RETRY_AFTER_HEADER,
            "content": _HTML,
        },
    },
}
