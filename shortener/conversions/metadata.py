"""This module limits and cleans the parameters of a conversion report before they are stored as metadata or with a refused
report.

Keys and tokens of this service are removed, because people see the stored parameters in lists. Characters that PostgreSQL or JSON
cannot store are removed too. From the parameters of a refused report, all secrets are removed. If the parameters have more than 4
KiB as JSON, the longest ones are cut or left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import orjson

from shortener.plurals import counted

MAX_METADATA_BYTES = 4096  # the maximum size of the metadata as JSON
MAX_METADATA_DEPTH = 50
MAX_WARNING_CHARACTERS = 60  # a warning quotes at most this many characters of an input

#: A regular expression for API keys, tracker tokens and postback keys. They are removed from stored parameters, so that no list
#: shows them.
_CREDENTIAL = re.compile(r"\b(?:sk|tt|pk)_[A-Za-z0-9_-]{20,}")
_SECRET_NAME = re.compile(r"token|secret|passw|api.?key|authorization|signature", re.IGNORECASE)
#: A regular expression for a name and its value in a text such as a URL, incomplete JSON, XML or a header. The part before the
#: name matches only a short text, so the search takes linear time.
_SECRET_IN_TEXT = re.compile(
    rf"""((?:{_SECRET_NAME.pattern})[\w.-]{{0,20}}\\?["']?\s{{0,5}}(?:[=:>]|%3D)\s{{0,5}})"""
    r"""(\\?"[^"]*"?|'[^']*'?|(?:(?:Bearer|Basic|App)\s+)?[^\s"'&,;<>{}\[\]]+)""",
    re.IGNORECASE,
)
#: A regular expression for the password in a URL such as https://user:password@host/.
_PASSWORD_OF_URL = re.compile(r"(://[^\s/?#@:]*:)[^\s/?#@]+(?=@)")
REMOVED = "[removed]"


def fit_metadata(parameters: Mapping[str, Any], warn: Callable[[str, str], None]) -> dict[str, Any]:
    """Return parameters as metadata: without credentials, without characters that the database cannot store, and with at most
    MAX_METADATA_BYTES bytes as JSON.

    `warn(name, text)` is called for each parameter that is cut or left out."""
    metadata: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    for name, value in parameters.items():
        name = _storable(name)
        try:
            value = _storable(value)
            # The number of bytes of the entry and its comma. It is one less than the length of the object, which has two braces.
            sizes[name] = len(orjson.dumps({name: value})) - 1
        except (TypeError, RecursionError):
            warn(name[:MAX_WARNING_CHARACTERS], "is nested too deeply; it was not stored")
            continue
        metadata[name] = value
    excess = sum(sizes.values()) + 1 - MAX_METADATA_BYTES
    for name in sorted(sizes, key=lambda one: -sizes[one]) if excess > 0 else ():
        shown, value = name[:MAX_WARNING_CHARACTERS], metadata[name]
        shorter = _cut_json_bytes(value, len(orjson.dumps(value)) - 2 - excess) if isinstance(value, str) else ""
        if shorter:
            metadata[name] = shorter
            warn(shown, f"was cut to {counted(len(shorter), 'character')}")
            break
        excess -= sizes[name]
        del metadata[name]
        warn(shown, "was not stored, because the parameters have more than 4 KiB")
        if excess <= 0:
            break
    return metadata


def _storable(value: Any, depth: int = 0) -> Any:
    """Return a parameter without credentials, NUL and lone surrogates. PostgreSQL and JSON cannot store NUL and lone surrogates.

    Raise TypeError if the value is nested more deeply than MAX_METADATA_DEPTH."""
    if isinstance(value, str):
        if not value.isascii():
            value = value.encode("utf-8", "replace").decode()
        return _CREDENTIAL.sub(REMOVED, value.replace("\x00", ""))
    if isinstance(value, Decimal):
        return number if _is_exact(number := float(value) if not value.is_snan() else math.nan, value) else str(value)
    if isinstance(value, int) and not isinstance(value, bool) and not -(1 << 63) <= value < 1 << 63:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict | list) and depth > MAX_METADATA_DEPTH:
        raise TypeError("nested too deeply")
    if isinstance(value, dict):
        return {_storable(str(name)): _storable(one, depth + 1) for name, one in value.items()}
    if isinstance(value, list):
        return [_storable(one, depth + 1) for one in value]
    return value


def _is_exact(number: float, value: Decimal) -> bool:
    """Return whether `number`, written as JSON, equals the decimal `value` exactly. If not, the value must be stored as text, with
    all its digits."""
    return math.isfinite(number) and Decimal(repr(number)) == value


def storable_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a refused report for storage: without credentials, and with at most 4 KiB as JSON.

    If a name contains a word such as token or password, its value is removed, in nested objects and in texts too."""
    return fit_metadata(_without_secrets(parameters), lambda name, text: None)


def _without_secrets(value: Any, depth: int = 0) -> Any:
    """Return a value without secrets. Parts that are nested more deeply than MAX_METADATA_DEPTH are not examined, because
    `fit_metadata` does not store them."""
    if isinstance(value, str):
        return _PASSWORD_OF_URL.sub(rf"\1{REMOVED}", _SECRET_IN_TEXT.sub(rf"\1{REMOVED}", value))
    if depth > MAX_METADATA_DEPTH:
        return value
    if isinstance(value, Mapping):
        return {
            _without_secrets(str(name)): REMOVED if _SECRET_NAME.search(str(name)) else _without_secrets(one, depth + 1)
            for name, one in value.items()
        }
    return [_without_secrets(one, depth + 1) for one in value] if isinstance(value, list) else value


def _cut_json_bytes(text: str, limit: int) -> str:
    """Cut a text so that its JSON string has at most `limit` bytes between the quotation marks. Return the cut text."""
    low, high = 0, max(min(len(text), limit), 0)
    while low < high:
        middle = (low + high + 1) // 2
        if len(orjson.dumps(text[:middle])) - 2 <= limit:
            low = middle
        else:
            high = middle - 1
    return text[:low]
