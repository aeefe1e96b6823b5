"""This module encodes and checks the labels of a host, which are its parts between the dots.

An international label becomes punycode, as browsers encode it: they follow UTS 46 and permit symbols, which IDNA 2008 rejects. The
caller must apply the mapping of UTS 46 first, and must match the result with `LABEL`. A label that browsers reject raises
`idna.IDNAError`, which states the reason.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import idna

#: A label in lower-case ASCII. The standards forbid host names with underscores, or with a hyphen at the start. This expression
#: permits both, because phones resolve them.
LABEL = re.compile(r"[a-z0-9_-]{1,63}")


def check_directions(labels: Iterable[str]) -> None:
    """Raise IDNAError if a host with right-to-left letters has an international label that breaks the Bidi rule (RFC 5893)."""
    decoded = [decode_label(label) for label in labels]
    if any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for label in decoded for character in label):
        for label in decoded:
            if not label.isascii() and not _is_symbol_label(label):
                idna.check_bidi(label, check_ltr=True)


def decode_label(label: str) -> str:
    """Decode a label of a host from punycode to Unicode. A label that is not punycode is returned unchanged."""
    return label[4:].encode().decode("punycode") if label.startswith("xn--") else label


def encode_label(label: str) -> str:
    """Encode a label of a host in ASCII (punycode). Raise IDNAError if browsers reject it.

    IDNA 2008 rejects symbols and emoji, but browsers follow UTS 46, and such domains exist (`i❤.ws`)."""
    if label.isascii() and not label.startswith("xn--"):
        return label
    try:
        if label.startswith("xn--"):
            idna.ulabel(label)
            return label
        return idna.alabel(label).decode()
    except idna.InvalidCodepoint:
        try:
            text = decode_label(label)
            encoded = "xn--" + text.encode("punycode").decode()
        except (UnicodeError, ValueError):
            raise idna.IDNAError("is not valid punycode") from None
        if not _is_symbol_label(text) or (label.isascii() and encoded != label):
            raise
        return encoded


def _is_symbol_label(text: str) -> bool:
    """Return whether both are true: a label of a host would be valid without its symbols, and UTS 46 leaves the label unchanged."""
    if any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in text):
        return False
    # The Unicode category Me contains the character that draws the square of keycap emoji, such as 1 in a square. A label must not
    # begin with a character of this category.
    others = "".join(character for character in text if unicodedata.category(character) not in ("So", "Sm", "Sk", "Me"))
    if unicodedata.category(text[:1] or " ") == "Me":
        return False
    if others == text or idna.uts46_remap(text, std3_rules=False, transitional=False) != text:
        return False
    if others.isascii():
        return not others or LABEL.fullmatch(others) is not None
    idna.check_label(others)
    return True
