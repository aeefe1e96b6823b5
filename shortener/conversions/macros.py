"""Detection of placeholders, such as `{transaction_id}`, that a network sent without replacing them by a value.

If such a text were accepted as a transaction id, every conversion of a message would be a repeat of the first one.
"""
# Tested by tests/conversions/test_macros.py

from __future__ import annotations

import re

# The name inside a placeholder. A GUID in braces is no placeholder, because a tracker may use it as an id.
_NAME = r"\s?(?![0-9a-f]{8}-[0-9a-f]{4}-)[a-z_][\w .:|-]{0,63}"
_PLAIN = r"[a-z][\w .:-]{0,63}"

#: The notations of placeholders that docs/reference/conversions.md lists. `x` stands for a name that begins with a letter.
NOTATIONS = ("{x}", "{{x}}", "${x}", "#{x}", "[x]", "[[x]]", "<x>", "#x#", "%x%", "%%x%%", "__X__", "||x||")

#: Matches {x}, {{x}}, ${x} and their percent-encoded forms anywhere in a text.
_IN_BRACES = re.compile(rf"\$?(?:\{{|%7b){{1,2}}{_NAME}(?:\}}|%7d){{1,2}}", re.IGNORECASE | re.ASCII)
#: Matches a placeholder in any other notation, which must be the whole text.
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
    """Return whether a text contains a placeholder in braces, or is as a whole a placeholder in another notation."""
    return bool(_IN_BRACES.search(text) or _WHOLE.fullmatch(text.strip()))
