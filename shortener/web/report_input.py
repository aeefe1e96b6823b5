"""This module reads the parameters of a conversion report from a query and a body in any of several formats.

Networks send postbacks by GET and by POST, with the parameters in the query, in a form, in multipart, or in JSON. The
Content-Type often does not match the body. Therefore this module ignores it: a body that is a JSON object is read as JSON, and
any other body as a form. A JSON body may have a byte order mark, and a body may be compressed. A URL that was copied from HTML
may contain entities: `&amp;` separates parameters like `&`, and `&lt;` and `&gt;` are read as < and >. Text that is not UTF-8 is
read as Windows-1252, with a warning, so that no report is lost.
"""
# Tested by tests/web/test_report_input.py

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import field
from email.message import Message
from email.parser import BytesParser
from email.utils import collapse_rfc2231_value
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from shortener.conversions.parsing import RepeatedValues
from shortener.errors import ApiError, ErrorCode
from shortener.model import mutable_record
from shortener.web.call_headers import find_header
from shortener.web.exact_amounts import parse_number
from shortener.web.request_body import MAX_FORM_FIELDS, BodyLimits, read_body

MAX_INTEGER_DIGITS = 40
MAX_BODY_EXCERPT = 1000  # the maximum number of bytes of an unparsable body in the list of refused reports


@mutable_record
class ReportInput:
    """The parameters of a conversion report. `problem` is the reason why the body could not be read. `warnings` are texts about
    values that may be incorrect."""

    parameters: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problem: ApiError | None = None

    def add(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Add parameters to the report. If a parameter is repeated with another value, its values become RepeatedValues."""
        for name, value in pairs:
            if name not in self.parameters:
                if len(self.parameters) >= MAX_FORM_FIELDS:
                    reason = f"not read, because a report may have at most {MAX_FORM_FIELDS} parameters"
                    self.warnings.append(f"{_shown(name)}: {reason}")
                    return
                self.parameters[name] = value
            elif isinstance(present := self.parameters[name], RepeatedValues):
                present += value if isinstance(value, RepeatedValues) else [value]
            elif present != value or isinstance(value, bool):
                self.parameters[name] = RepeatedValues([present, *(value if isinstance(value, RepeatedValues) else [value])])

    def decode(self, content: bytes, what: str) -> str:
        """Decode bytes as UTF-8, or as Windows-1252 with a warning."""
        try:
            return content.decode()
        except UnicodeDecodeError:
            warning = f"{what}: is not UTF-8; it was read as Windows-1252"
            if warning not in self.warnings:
                self.warnings.append(warning)
            return content.decode("cp1252", "replace")


async def read_report(request: Request, body_limit: int) -> ReportInput:
    """Return all parameters of a request. If the body cannot be read, or is longer than `BodyLimits.of_report` permits, `problem`
    of the result contains the reason. `body_limit` is the setting BODY_LIMIT."""
    limits = BodyLimits.of_report(body_limit)
    found = ReportInput()
    query = request.scope["query_string"]
    if query:
        found.add(_parse_form(query, found, "query"))
    if (find_header(request, b"content-length") or "0") == "0" and find_header(request, b"transfer-encoding") is None:
        return found
    try:
        body = await read_body(request, limits, is_form=True)
        body = _decompress(body, find_header(request, b"content-encoding") or "", limits.max_bytes)
        _read_body(found, body, find_header(request, b"content-type") or "")
    except ApiError as error:
        found.problem = error
    return found


def _decompress(body: bytes, encoding: str, limit: int) -> bytes:
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    expander = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # wbits + 32 accepts both gzip and zlib
    try:
        expanded = expander.decompress(body, limit + 1)
    except zlib.error:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"The body is not {encoding}, as its Content-Encoding says.") from None
    if len(expanded) > limit:
        raise ApiError(ErrorCode.BODY_TOO_LARGE, f"The body must have at most {limit} bytes.")
    return expanded


def _read_body(found: ReportInput, body: bytes, content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        found.add(_parse_multipart(body, content_type, found))
        return
    if body.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = body.decode("utf-16", "replace")
        body = text.encode()
    elif body.startswith(b"\xef\xbb\xbf"):
        body = body[3:]
    start = body.lstrip()[:1]
    is_declared_json = kind == "application/json" or kind.endswith("+json")
    if not start:
        return
    if start in b"{[" or is_declared_json:
        try:
            found.add(_parse_json(found.decode(body, "body")).items())
            return
        except ApiError as error:
            if is_declared_json or b"=" not in body:
                found.parameters.setdefault("(body)", found.decode(body[:MAX_BODY_EXCERPT], "body"))
                raise error from None
    if b"=" not in body:
        found.parameters.setdefault("(body)", found.decode(body[:MAX_BODY_EXCERPT], "body"))
        raise ApiError(ErrorCode.INVALID_JSON, "The body is neither a JSON object nor a form.")
    found.add(_parse_form(body.strip(), found, "body"))


def _parse_json(text: str) -> Mapping[str, Any]:
    """Parse a body that must be one JSON object. Numbers with a decimal point stay exact."""
    try:
        data = _JSON.decode(text)
    except (ValueError, RecursionError) as error:
        raise ApiError(ErrorCode.INVALID_JSON, f"The body is not valid JSON: {error}") from None
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    if not isinstance(data, dict):
        raise ApiError(ErrorCode.INVALID_JSON, "The body must be one JSON object, which reports one conversion.")
    return data


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. If a name is repeated with another value, its values become RepeatedValues."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = ReportInput()
    repeated.add(pairs)
    return repeated.parameters


def _parse_integer(text: str) -> int | str:
    return int(text) if len(text) <= MAX_INTEGER_DIGITS else text


#: A JSON decoder that returns numbers as exact decimals and accepts control characters in texts.
_JSON = json.JSONDecoder(
    object_pairs_hook=_parse_object, parse_float=parse_number, parse_int=_parse_integer, parse_constant=str, strict=False
)


def _parse_form(content: bytes, found: ReportInput, what: str) -> list[tuple[str, str]]:
    """Return the parameters of a query or a form, in their order."""
    pieces = content.replace(b"&lt;", b"%3C").replace(b"&gt;", b"%3E").split(b"&", MAX_FORM_FIELDS + 1)
    if len(pieces) > MAX_FORM_FIELDS:
        found.warnings.append(f"{what}: has more than {MAX_FORM_FIELDS} parameters; the rest was not read")
        del pieces[MAX_FORM_FIELDS:]
    pairs = []
    for piece in pieces:
        name, _, value = piece.partition(b"=")
        while name.startswith(b"amp;"):
            name = name[4:]
        if name or value:
            decoded = (found.decode(unquote_to_bytes(part.replace(b"+", b" ")), what) for part in (name, value))
            pairs.append((next(decoded), next(decoded)))
    return pairs


def _field_name(part: Message, found: ReportInput) -> str:
    """Return the name of the field in a part of a multipart form, or "" if the part has no name.

    Clients send names that are not ASCII as UTF-8 bytes. `Message.get_param` would replace these bytes, so the header is decoded
    first."""
    for header, value in part.raw_items():
        if header.lower() == "content-disposition":
            decoded = Message()
            decoded[header] = found.decode(value.encode("ascii", "surrogateescape"), "body")
            return collapse_rfc2231_value(decoded.get_param("name", "", header))
    return ""


def _shown(name: str) -> str:
    """Return the first 60 characters of a parameter's name, as a warning shows them. Unpaired surrogates are escaped."""
    return name[:60].encode("utf-8", "backslashreplace").decode()


def _parse_multipart(body: bytes, content_type: str, found: ReportInput) -> list[tuple[str, str]]:
    """Return the fields of a multipart form, without uploaded files."""
    try:
        return _read_parts(body, content_type, found)
    # The error is raised for a header with a parameter such as name*=idna''x, whose encoding Python cannot decode.
    except ValueError:
        reason = "The body is a multipart form with a header that cannot be decoded."
        raise ApiError(ErrorCode.INVALID_REQUEST, reason) from None


def _read_parts(body: bytes, content_type: str, found: ReportInput) -> list[tuple[str, str]]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace")
    parts = BytesParser().parsebytes(head + body).get_payload()
    if not isinstance(parts, list):
        raise ApiError(ErrorCode.INVALID_REQUEST, "The body is not a multipart form with the boundary of its Content-Type.")
    pairs = []
    for part in parts[:MAX_FORM_FIELDS]:
        name = _field_name(part, found) if isinstance(part, Message) else ""
        if not isinstance(part, Message) or not name:
            continue
        if part.get_filename() is not None:
            found.warnings.append(f"{_shown(name)}: is a file; it was not stored")
            continue
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            pairs.append((name, found.decode(payload, "body")))
    return pairs
