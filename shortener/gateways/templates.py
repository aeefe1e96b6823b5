"""This module fills the templates of requests to gateways, and reads values from their responses and reports by paths.

A template contains placeholders in braces, such as `{phone}`. `fill` replaces them and encodes each value as its place requires:
percent-encoded in a URL or a form, escaped in a JSON or XML body, and without line ends in a header. Therefore no value can add a
parameter, a field or a header. A placeholder inside a value stays text.

A path is `$.messages.0.id` for a value of a JSON body, or a text with `{value}` that matches a text body, such as `Success
"{value}"`. `|` separates alternatives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal
from urllib.parse import quote

Escaping = Literal["url", "form", "json", "xml", "header", "none"]

PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
VALUE = "{value}"
MAX_VALUE_CHARACTERS = 500
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def escaping_of(content_type: str) -> Escaping:
    """Return the name of the encoding for values in a body of this media type, such as `json`."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return "form"
    if kind == "application/json" or kind.endswith("+json"):
        return "json"
    if kind in ("application/xml", "text/xml") or kind.endswith("+xml"):
        return "xml"
    return "none"


def _escape_xml(text: str) -> str:
    from xml.sax.saxutils import escape  # imported here, because the module imports urllib.request and http.client (1 MB)

    # These control characters are replaced, because XML 1.0 cannot represent them.
    return escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\ufffd", text), {'"': "&quot;", "'": "&apos;"})


_ESCAPES: Mapping[Escaping, Callable[[str], str]] = {
    "url": lambda text: quote(text, safe=""),
    "form": lambda text: quote(text, safe=""),
    "json": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "xml": _escape_xml,
    "header": lambda text: _CONTROL.sub(" ", text),
    "none": lambda text: text,
}


def fill(template: str, values: Mapping[str, str], escaping: Escaping) -> str:
    """Return the template with its placeholders replaced by the encoded values. A placeholder that is not in `values` stays
    unchanged. A parameter of a query or a form whose value is empty is left out."""
    encode = _ESCAPES[escaping]

    def replace(text: str) -> str:
        return PLACEHOLDER.sub(lambda found: encode(values[found[1]]) if found[1] in values else found[0], text)

    if escaping == "form":
        return _without_empty(template, replace)
    if escaping == "url" and "?" in template:
        path, _, query = template.partition("?")
        query, hash_sign, fragment = query.partition("#")
        filled = _without_empty(query, replace)
        return replace(path) + ("?" + filled if filled else "") + hash_sign + fragment
    return replace(template)


def _without_empty(template: str, replace: Callable[[str], str]) -> str:
    """Fill a query or a form. Leave out the parameters whose values become empty."""
    parts = []
    for part in template.split("&"):
        name, sign, value = part.partition("=")
        filled = replace(value)
        if not (sign and value and not filled):
            parts.append(replace(name) + sign + filled)
    return "&".join(parts)


def unknown_placeholders(template: str, names: Mapping[str, object]) -> list[str]:
    """Return the placeholders of a template that are not in `names`."""
    return [name for name in dict.fromkeys(PLACEHOLDER.findall(template)) if name not in names]


def check_path(path: str) -> str:
    """Return the path unchanged. Raise ValueError if an alternative is neither a path of JSON nor a text with one `{value}`."""
    for part in filter(None, path.split("|")):
        if not part.startswith("$.") and part.count(VALUE) != 1:
            raise ValueError(f'{part!r} must be a path such as $.messages.0.id, or a text with {VALUE} such as Success "{VALUE}"')
    return path


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON body; None if it is not JSON. The body may begin with a byte order mark.

    Bytes that are not valid UTF-8 are replaced by U+FFFD. This is harmless: gateways send such bytes only in descriptions for
    people, not in ids or statuses."""
    try:
        try:
            return json.loads(body, parse_float=str)
        except UnicodeDecodeError:
            return json.loads(body.decode("utf-8", "replace"), parse_float=str)
    except (ValueError, RecursionError):
        return None


def read_path(path: str, body: bytes, data: Any = None) -> str | None:
    """Return the value at a path of a body; None if it is missing. `data` is the parsed JSON of the body, or None.

    The result has at most MAX_VALUE_CHARACTERS characters."""
    for part in filter(None, path.split("|")):
        value = read_member(part[2:], data) if part.startswith("$.") else _read_text(part, body)
        if value is not None:
            return value[:MAX_VALUE_CHARACTERS]
    return None


def read_member(path: str, data: Any) -> str | None:
    """Return the member of JSON data at a path such as `messages.0.id`, as text; None if it is missing or is not a scalar."""
    value = find_member(path, data)
    if value is None or isinstance(value, dict | list):
        return None
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def find_member(path: str, data: Any) -> Any:
    """Return the member of JSON data at a path such as `messages.0`; None if it is missing."""
    for name in path.split("."):
        if isinstance(data, dict):
            data = data.get(name)
        elif isinstance(data, list) and name.isascii() and name.isdecimal():
            data = data[int(name)] if len(name) < 10 and int(name) < len(data) else None
        else:
            return None
    return data


def _read_text(pattern: str, body: bytes) -> str | None:
    before, _, after = pattern.partition(VALUE)
    text = body.decode("utf-8", "replace")
    start = text.find(before)
    if start < 0:
        return None
    start += len(before)
    end = text.find(after, start) if after else len(text)
    return text[start:end].strip() or None if end >= 0 else None
