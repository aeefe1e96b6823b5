"""This module hides the secret values of a URL template, and finds masks that a caller sends back as if they were values.

A fixed value in the query may be a credential, so it is shown as MASK. A value with a placeholder is shown. A known word such as
UTF-8 and a value of at most MAX_SHOWN_CHARACTERS characters are also shown. If the name of the parameter suggests a credential,
these values are masked too. The other parts of the URL do not change, so that a shown URL without a mask can be stored again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

MASK = "***"
MASK_REASON = (
    f"contains {MASK}, which stands for a hidden value: write the value itself, or a placeholder such as {{token}} for a variable"
)
MAX_SHOWN_CHARACTERS = 3
_CREDENTIAL_NAME = re.compile(
    r"pass|pw|psw|pin|secret|token|key|auth|cred|sign|user|usr|login|account|hash|^(?:p|u|h|k)$", re.IGNORECASE
)
_KNOWN_VALUES = frozenset(
    {"true", "false", "json", "text", "plain", "unicode", "binary", "flash", "gsm7", "gsm-7", "ucs2", "ucs-2", "send", "sendsms"}
    | {"ascii", "us-ascii", "utf8", "utf-8", "utf16", "utf-16", "utf-16be", "iso-8859-1", "iso-8859-15", "windows-1252", "latin1"}
)


def mask_url(url: str) -> str:
    """Return a URL template with MASK in place of each value of its query that may be a credential."""
    start, question_mark, rest = url.partition("?")
    query, hash_sign, fragment = rest.partition("#")
    return start + question_mark + "&".join(map(_mask_parameter, query.split("&"))) + hash_sign + fragment


def _mask_parameter(parameter: str) -> str:
    name, sign, value = parameter.partition("=")
    if not sign:  # a parameter without a value may itself be a credential
        return parameter if _is_shown("", parameter) else MASK
    return parameter if _is_shown(name, value) else f"{name}={MASK}"


def _is_shown(name: str, value: str) -> bool:
    if not value or "{" in value:
        return True
    if _CREDENTIAL_NAME.search(unquote_plus(name)):
        return False
    text = unquote_plus(value)
    return len(text) <= MAX_SHOWN_CHARACTERS or text.lower() in _KNOWN_VALUES


def find_masks(values: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that contain MASK where a value should be: as a complete text, or as the value of a
    parameter in the query of a URL. The name of a member is written after a dot, such as variables.password."""
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += [f"{name}.{member}" for member in find_masks(value)]
        elif isinstance(value, str) and _has_mask(value):
            found.append(name)
    return found


def _has_mask(text: str) -> bool:
    if text.strip() == MASK:
        return True
    _, question_mark, query = text.partition("?")
    return bool(question_mark) and any(
        unquote_plus(part.partition("=")[2] or part) == MASK for part in query.partition("#")[0].split("&")
    )
