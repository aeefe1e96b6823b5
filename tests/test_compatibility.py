"""Tests of docs/reference/compatibility.md: all names in it exist in the code, and it contains all names that the vendors
document.

The header of the first column of a table, such as `Syniverse's event field`, contains the vendor and the kind of the names.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from pydantic import BaseModel

from shortener.delivery.event_fields import FACTS
from shortener.delivery.formats import FORMATS, render
from shortener.delivery.placeholders import PLACEHOLDERS
from shortener.errors import ErrorCode
from shortener.web.vendors.infobip import InfobipRequest
from shortener.web.vendors.infobip_preview import InfobipPreviewRequest
from shortener.web.vendors.infobip_v3 import InfobipV3Request
from shortener.web.vendors.syniverse import SyniverseMessageRequest
from shortener.web.vendors.vendor_model import Unsupported
from shortener.web.vendors.xoxzo import XoxzoSendRequest
from tests.acceptance.vendor_clients import INFOBIP_CLIENTS, PACKAGES, SCRIPTS
from tests.one_test import in_one_test
from tests.web.openapi_document import openapi_document

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "compatibility.md"
SYSTEMS = ("Syniverse", "Infobip", "Xoxzo", "23 Telecom")
KINDS = ("call", "request field", "response field", "event field", "placeholder", "header", "error", "rule")

Row = tuple[str, ...]


def tables() -> Iterator[tuple[str, str, list[Row]]]:
    """Yield the vendor, the kind of names and the rows of each table in docs/reference/compatibility.md."""
    for block in re.split(r"\n\n+", PAGE.read_text()):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            head, _, *rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
            system, separator, kind = head[0].partition("'s ")
            if separator:  # the table of clients has other columns than the rest, so it is left out
                yield system, kind, rows


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def calls() -> set[str]:
    return {f"{method.upper()} {path}" for path, methods in openapi_document()["paths"].items() for method in methods}


def operation(call: str) -> dict[str, Any]:
    method, path = call.split()
    found: dict[str, Any] = openapi_document()["paths"][path][method.lower()]
    return found


def paths_of(schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the path of every field of a JSON schema, with dots between the names. Lists and variants add nothing to the path."""
    if "$ref" in schema:
        yield from paths_of(openapi_document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]], prefix)
    for part in ("anyOf", "oneOf", "allOf"):
        for variant in schema.get(part, ()):
            yield from paths_of(variant, prefix)
    if "items" in schema:
        yield from paths_of(schema["items"], prefix)
    for name, field in schema.get("properties", {}).items():
        yield f"{prefix}{name}"
        yield from paths_of(field, f"{prefix}{name}.")


def requested(call: str) -> set[str]:
    found = operation(call)
    fields = {one["name"] for one in found.get("parameters", ()) if one["in"] == "query"}
    for content in found.get("requestBody", {}).get("content", {}).values():
        fields |= set(paths_of(content["schema"]))
    return fields


def answered(call: str) -> set[str]:
    good = [answer for status, answer in operation(call)["responses"].items() if status.startswith("2")]
    return {path for answer in good for content in answer["content"].values() for path in paths_of(content["schema"])}


def rendered(format: str) -> set[str]:
    facts = dict.fromkeys(FACTS, "1") | {"topic": "click", "metadata": {"a": 1}}
    return set(_dotted(orjson.loads(render(format, facts, attempt=1, fields=None)[0])))


def _dotted(body: Any, prefix: str = "") -> Iterator[str]:
    for name, value in body.items() if isinstance(body, dict) else ():
        yield f"{prefix}{name}"
        yield from _dotted(value, f"{prefix}{name}.")


def check_calls(row: Row) -> None:
    assert spans(row[1])
    assert set(spans(row[1])) <= calls()


def check_fields(fields_of: Callable[[str], set[str]]) -> Callable[[Row], None]:
    def check(row: Row) -> None:
        where, field = spans(row[1])
        assert field in fields_of(where)

    return check


def check_named(known: Callable[[], set[str]]) -> Callable[[Row], None]:
    def check(row: Row) -> None:
        (name,) = spans(row[1])
        assert name in known()

    return check


def headers() -> set[str]:
    return {
        scheme["name"] for scheme in openapi_document()["components"]["securitySchemes"].values() if scheme.get("in") == "header"
    }


CHECKS: dict[str, Callable[[Row], None]] = {
    "call": check_calls,
    "request field": check_fields(requested),
    "response field": check_fields(answered),
    "event field": check_fields(rendered),
    "placeholder": check_named(lambda: {f"{{{name}}}" for name in PLACEHOLDERS}),
    "header": check_named(headers),
    "error": check_named(lambda: {code.name for code in ErrorCode}),
    "rule": lambda row: None,
}


@in_one_test
@pytest.mark.parametrize(("system", "kind", "rows"), list(tables()), ids=lambda part: part if isinstance(part, str) else "")
def test_every_name_in_the_tables_of_compatibility_md_exists_in_the_code(system: str, kind: str, rows: list[Row]) -> None:
    assert system in SYSTEMS
    for row in rows:
        assert len(row) == (2 if kind == "rule" else 3), row
        if row[1] != "none":
            CHECKS[kind](row)
        else:
            assert row[2], "the remark must say why this service has no such name"


def test_every_endpoint_and_error_code_in_the_text_of_compatibility_md_exists() -> None:
    named = set(spans(PAGE.read_text()))
    assert {span for span in named if re.fullmatch(r"(GET|POST|PATCH|DELETE) /api/\S+", span)} <= calls()
    elsewhere = {"SCG_ERROR_4007", "NOT_SENT", "NO_ERROR", "BATCH_LIMIT", "LINK_TTL_DAYS"}
    codes = {span for span in named if re.fullmatch(r"[A-Z]+_[A-Z0-9_]+", span)} - elsewhere
    assert codes <= {code.name for code in ErrorCode}


#: The names in the vendors' documents, by vendor and kind of name. `event.fld-val-list` is the object that contains Syniverse's
#: event fields.
_SYNIVERSE_FIELDS = (
    *("previous_state", "message_request_id", "message_id", "to_address", "has_attachment", "reason_description"),
    *("application_id", "reason_code", "sender_id_alias", "company-id", "sender_id_id", "external_message_request_id"),
    *("new_state", "fragments_count", "from_address", "mt_price"),
)
DOCUMENTED: Mapping[str, Mapping[str, set[str]]] = {
    "Syniverse": {
        "request field": {"from", "to", "body"},
        "event field": {"topic", "attempt", *(f"event.fld-val-list.{name}" for name in _SYNIVERSE_FIELDS)},
    },
    "Infobip": {
        "call": {
            "POST /sms/1/text/advanced",
            "POST /ct/1/log/end/{messageId}",
            "GET /ct/1/processes/{processKey}/conversionrate",
        },
        "request field": {
            *("bulkId", "messages.from", "messages.destinations.to", "messages.text", "tracking.track", "tracking.type"),
            *("since", "until", "aggrType", "intervalGranulation", "urlOptions.shortenUrl", "urlOptions.trackClicks"),
        },
        "response field": {
            *("bulkId", "messages.to", "messages.smsCount", "messages.messageId", "processKey"),
            *(f"messages.status.{name}" for name in ("groupId", "groupName", "id", "name", "description")),
            *(f"statistics.{name}" for name in ("intervalStart", "startCount", "endCount", "conversionRate")),
            *(f"cumulativeStatistics.{name}" for name in ("startCount", "endCount", "conversionRate")),
        },
    },
    "Xoxzo": {
        "call": {"POST /sms/messages/", "GET /sms/messages/{msgid}/"},
        "request field": {"sender", "message", "recipient", "track_link", "lt_callbackurl", "lt_callbackur"},
        "response field": {
            *("status", "sender", "url", "sent_time", "cost", "msgid", "tags", "recipient"),
            *(f"link_tracking.{name}" for name in ("link", "shortlink", "accessed", "accessed_on")),
        },
    },
    "23 Telecom": {
        "call": {
            *("GET /api/v1/track", "POST /api/v1/callback/action", "GET /api/v1/action/track", "POST /action", "POST /sms/send"),
            *("GET /sms/status/:message_id", "GET /sms/messages", "GET /sms/messages/unified", "GET /sms/messages/unified/export"),
            *("GET /sms/stats", "GET /sms/stats/daily", "GET /sms/stats/by-country"),
        },
        "request field": {"to", "message", "sender_id", "conversion_url", "conversion_fields"},
        "response field": {
            *(f"messages.{name}" for name in ("dnis", "message_id", "segment_num")),
            *(f"results.{name}" for name in ("dnis", "message_id", "segments", "status")),
            *(f"summary.{name}" for name in ("total_recipients", "total_segments", "total_cost", "encoding", "accepted_count")),
            *(f"summary.{name}" for name in ("blocked_count", "queue_error_count", "config_error_count", "db_error_count")),
        },
        "placeholder": {
            *("{message_id}", "{phone}", "{recipient}", "{sender_id}", "{cost}"),
            *("{status}", "{status_code}", "{num_parts}", "{timestamp}", "{telecom_message_id}"),
        },
        "header": {"X-Api-Token", "X-API-Key"},
        "error": {
            *("DB_ERROR", "INSUFFICIENT_BALANCE", "INVALID_BODY", "INVALID_TO", "INVALID_MESSAGE", "INVALID_SENDER"),
            "TOO_MANY_RECIPIENTS",
        },
    },
}


def test_compatibility_md_contains_every_name_in_the_documents_of_syniverse_infobip_xoxzo_and_23_telecom() -> None:
    named: dict[tuple[str, str], set[str]] = defaultdict(set)
    for system, kind, rows in tables():
        named[system, kind] |= {span for row in rows for span in spans(row[0])}
    missing = {
        (system, kind): wanted - named[system, kind]
        for system, kinds in DOCUMENTED.items()
        for kind, wanted in kinds.items()
        if wanted - named[system, kind]
    }
    assert missing == {}
    assert {kind for _, kind in named} == set(KINDS)


def test_compatibility_md_contains_every_event_format_of_trackers() -> None:
    text = PAGE.read_text()
    assert [format for format in FORMATS if f"`{format}`" not in text] == []


#: The request models of vendors that have fields which may cause a warning.
LENIENT = {
    "Syniverse": (SyniverseMessageRequest,),
    "Infobip": (InfobipRequest, InfobipV3Request, InfobipPreviewRequest),
    "Xoxzo": (XoxzoSendRequest,),
}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def warned_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each field that has no other effect than a warning: its path, and the reason in the warning."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        reasons = [mark.reason for mark in field.metadata if isinstance(mark, Unsupported)]
        if reasons:
            yield path, reasons[0]
        for part in models_in(field.annotation):
            yield from warned_fields(part, f"{path}.")


def remark(reason: str) -> str:
    """Return the remark about a field in compatibility.md. The warning about this field ends with `reason`, such as "is not
    supported; …"."""
    return f"N{reason.removeprefix('is n')}. A value causes a warning."


def test_compatibility_md_lists_each_field_that_causes_a_warning_with_the_reason() -> None:
    listed = [(system, row) for system, kind, rows in tables() if kind == "request field" for row in rows]
    missing = [
        f"| `{path}` | none | {remark(reason)} |"
        for system, models in LENIENT.items()
        for path, reason in dict(found for model in models for found in warned_fields(model)).items()
        if (system, (f"`{path}`", "none", remark(reason))) not in listed
    ]
    assert missing == [], "add these rows"


def test_compatibility_md_states_for_each_tested_client_whether_it_shows_the_rewritten_text() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith(("| PyPI", "| npm"))]
    for name, (package, *_) in PACKAGES.items():
        distribution, version = package.split("==")
        (line,) = [line for line in lines if f"`{distribution}`" in line and version in line]
        shown = line.split("|")[3].strip()
        assert (shown == "yes") is (name not in INFOBIP_CLIENTS), line
    assert json.loads((SCRIPTS / "package.json").read_text())["dependencies"] == {"@infobip-api/sdk": "0.3.2"}
    assert any("`@infobip-api/sdk` | 0.3.2 | yes" in line for line in lines)
