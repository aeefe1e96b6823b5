"""This module replaces placeholders in the destination of a redirect, and appends the click id to the query of the
destination."""

# Tested by tests/test_urls.py

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from urllib.parse import quote, unquote_to_bytes

from shortener.urls import PLACEHOLDER


def fill_placeholders(location: bytes, values: Mapping[str, str]) -> bytes:
    """Replace each placeholder `{name}` in `location` with `values[name]`, percent-encoded (RFC 3986), and return the result.

    The replacement is one pass, and braces in a value are encoded. Therefore a value cannot add a placeholder. A placeholder
    without a value stays in the result, so that a later call can replace it."""

    def value(match: re.Match[bytes]) -> bytes:
        text = values.get(match[1].decode())
        return match[0] if text is None else quote(text, safe="").encode()

    return PLACEHOLDER.sub(value, location)


def message_values(message_id: str, campaign: str, phone: str) -> dict[str, str]:
    """Return the values that replace the placeholders of a message. `phone` is the recipient's number in E.164; the values
    contain only its hash."""
    return {"message_id": message_id, "campaign": campaign, "phone_sha256": hashlib.sha256(phone.encode()).hexdigest()}


def append_param(location: bytes, name: str, value: str) -> bytes:
    """Return `location` with `name=value` at the end of its query, before the fragment. Every other byte stays the same.

    If the query already has a parameter of that name, return `location` unchanged."""
    key = quote(name, safe="").encode()
    address, hash_sign, fragment = location.partition(b"#")
    _, question_mark, query = address.partition(b"?")
    plain = name.encode()
    for part in query.split(b"&"):
        present = part.partition(b"=")[0]
        if present in (key, plain) or (b"%" in present and unquote_to_bytes(present) == plain):
            return location
    separator = b"?"
    if question_mark:
        separator = b"&" if query and not query.endswith(b"&") else b""
    return b"%b%b%b=%b%b%b" % (address, separator, key, quote(value, safe="").encode(), hash_sign, fragment)
