"""This module encodes and checks the labels of a host name. A label is a part between two dots.

A label with characters outside of ASCII becomes punycode, in the same way as in browsers. Browsers follow UTS 46, which permits
symbols, and not IDNA 2008, which rejects symbols. The caller must first apply the mapping of UTS 46, and must match the result
of this module with `LABEL`. A label that browsers reject raises `idna.IDNAError`, which states the reason.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import idna

#: The form of a label in lower-case ASCII. The standards forbid a label with an underscore, or with a hyphen at the start. This
#: expression permits both, because phones resolve such host names.
LABEL = re.compile(r"[a-z0-9_-]{1,63}")


def check_directions(labels: Iterable[str]) -> None:
    """If a host name has right-to-left letters, check its international labels. Raise IDNAError if a label breaks the Bidi rule
    (RFC 5893)."""
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

    Symbols and emoji are accepted, because browsers accept them (UTS 46) and such domains exist (`i❤.ws`). IDNA 2008 rejects
    them."""
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
    """Return whether browsers permit a label with symbols. They permit it if it has no right-to-left letters, its other
    characters form a valid label, and the mapping of UTS 46 does not change it. Return False for a label without symbols."""
    if any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in text):
        return False
    # A keycap emoji, such as 1 in a square, contains a combining character that draws the square. This character has the Unicode
    # category Me, so Me counts as a symbol. But a label must not begin with a combining character.
    others = "".join(character for character in text if unicodedata.category(character) not in ("So", "Sm", "Sk", "Me"))
    if unicodedata.category(text[:1] or " ") == "Me":
        return False
    if others == text or idna.uts46_remap(text, std3_rules=False, transitional=False) != text:
        return False
    if others.isascii():
        return not others or LABEL.fullmatch(others) is not None
    idna.check_label(others)
    return True
