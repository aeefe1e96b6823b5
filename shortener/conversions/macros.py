"""Placeholders that a network sent without replacing them, in the syntax of any common system.

As a transaction id, such a text would make every conversion of a message a repeat of the first one.
"""
# Tested by tests/conversions/test_macros.py

from __future__ import annotations

import re

# The name of a placeholder. A GUID in braces is not one, because a tracker may use it as an id.
_NAME = r"\s?(?![0-9a-f]{8}-[0-9a-f]{4}-)[a-z_][\w .:|-]{0,63}"
_PLAIN = r"[a-z][\w .:-]{0,63}"

#: The notations, as the documentation lists them. `x` stands for a name that begins with a letter.
NOTATIONS = ("{x}", "{{x}}", "${x}", "#{x}", "[x]", "[[x]]", "<x>", "#x#", "%x%", "%%x%%", "__X__", "||x||")

#: {x}, {{x}}, ${x} and their percent-encoded forms, anywhere in the text.
_IN_BRACES = re.compile(rf"\$?(?:\{{|%7b){{1,2}}{_NAME}(?:\}}|%7d){{1,2}}", re.IGNORECASE | re.ASCII)
#: The other notations, as the whole text.
_WHOLE = re.compile(
    rf"(?:\[|%5b){{1,2}}{_NAME}(?:\]|%5d){{1,2}}"
    rf"|(?:<|%3c){{1,2}}{_PLAIN}(?:>|%3e){{1,2}}"
    rf"|(?:#|%23){{1,2}}{_PLAIN}(?:#|%23){{1,2}}"
    rf"|(?:%25|%){{1,2}}{_PLAIN}(?:%25|%){{1,2}}"
    r"|__[a-z][a-z0-9]*(?:[_.-][a-z0-9]+)*__"
    rf"|(?:\||%7c){{2}}{_PLAIN}(?:\||%7c){{2}}",
    re.IGNORECASE | re.ASCII,
)


def is_unexpanded(text: str) -> bool:
    """Return whether a text contains a placeholder in braces, or consists of one in another notation."""
    return bool(_IN_BRACES.search(text) or _WHOLE.fullmatch(text.strip()))
