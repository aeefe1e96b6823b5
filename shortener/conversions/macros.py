"""This module detects placeholders, such as `{transaction_id}`, that a network sent without replacing them by a value.

A placeholder must not be accepted as a transaction id: all later conversions of the message would have the same id, and would
count as repeats of the first one.

NOTATIONS is the table of the notations, which docs/reference/conversions.md shows. A text is checked unchanged, and again after
its percent-encoding and HTML entities are decoded, because copies of URLs contain them. Ids of other systems are not
placeholders, even in braces: the name of a placeholder begins with a letter, and a GUID or a hexadecimal number is not a name.
"""
# Tested by tests/conversions/test_macros.py

from __future__ import annotations

import re
from urllib.parse import unquote

#: The notations of placeholders in braces, here with the name x. A placeholder in braces is detected anywhere in a text.
IN_BRACES = ("{x}", "{{x}}", "${x}", "#{x}", "%{x}", "@{x}", "{$x}", "{%x%}", "{!x}", "{@x}", "{#x#}", "{=x}")
#: The notations of placeholders without braces. They are detected only if the placeholder is the whole text.
WHOLE = (
    *("[x]", "[[x]]", "[%x%]", "[$x]", "<x>", "<<x>>", "<%x%>", "<%=x%>", "<?=x?>", "((x))", "$(x)", "%(x)s"),
    *("#x#", "##x##", "%x%", "%%x%%", "%%=x=%%", "__X__", "|x|", "||x||", "*|X|*", "@x@", "@@x@@", "$x$", "$$x$$"),
    *("~x~", "~~x~~", "^x^", "!!x!!", "!!!x!!!"),
)
NOTATIONS = (*IN_BRACES, *WHOLE)

# The name inside a placeholder is not an id, such as a GUID. A filter or a format may follow the name: {cost:2}, {{ id | raw }}.
_NOT_AN_ID = r"(?![0-9a-f]{8}-[0-9a-f]{4}-|(?=[a-f]*[0-9])[0-9a-f]{12,}(?!\w))"
_NAME = rf"\s?{_NOT_AN_ID}[a-z_][\w .:|-]{{0,63}}"
_PLAIN_NAME = rf"\s?{_NOT_AN_ID}[a-z][\w .:-]{{0,63}}"


def _pattern(notation: str, name: str) -> str:
    before, after = re.split("[xX]", notation)
    return re.escape(before) + name + re.escape(after)


_IN_BRACES = re.compile("|".join(_pattern(one, _NAME) for one in IN_BRACES), re.IGNORECASE | re.ASCII)
_WHOLE = re.compile("|".join(_pattern(one, _PLAIN_NAME) for one in WHOLE), re.IGNORECASE | re.ASCII)
#: A regular expression for texts that contain only the characters of usual ids. Such a text contains no placeholder.
_USUAL = re.compile(r"(?!__)[\w.:/+=-]*", re.ASCII)
# Characters that a query parser makes of a percent sign and two hexadecimal letters. For example, it decodes %ca, so it reads the
# placeholder %campaign% as Êmpaign% (in Windows-1252).
_HALF_DECODED = re.compile("[\xaa-\xaf\xba-\xbf\xca-\xcf\xda-\xdf\xea-\xef\xfa-\xff]")
_MAX_DECODINGS = 2  # at most twice, because some systems encode a URL that is already encoded


def is_unexpanded(text: str) -> bool:
    """Return whether a text contains a placeholder in braces, or whether the whole text is a placeholder in another notation."""
    if _USUAL.fullmatch(text):
        return False
    from html import unescape  # imported here, because the table of HTML entities takes 0.4 MB, and few values need it

    texts = {text}
    if "%" in text and not any(character.isspace() for character in text.strip()):
        texts.add(_HALF_DECODED.sub(lambda sign: f"%{ord(sign[0]):x}", text))
    for _ in range(_MAX_DECODINGS + 1):
        if any(_IN_BRACES.search(one) or _WHOLE.fullmatch(one.strip()) for one in texts):
            return True
        # Also apply each decoding alone: percent-decoding first would destroy the placeholder in &lt;%ad_id%&gt;, because %ad
        # looks like an escape.
        decoded = {decode(one) for one in texts for decode in (unquote, unescape)} - texts
        if not decoded:
            return False
        texts = decoded
    return False
