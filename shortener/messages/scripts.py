"""Hosts that mix scripts, as look-alikes do: the first letter of `аpple.example` is Cyrillic.

A mixed host is no fault of itself, and real ones exist, so it is told and not refused. A letter's script is read from its Unicode
name. Scripts that languages do mix pass: Japanese, Chinese and Korean, each with Latin beside it (Unicode TR 39, "highly
restrictive"). A whole word in another script that looks like Latin (`сосо`) is not noticed: nothing about it is mixed.
"""

from __future__ import annotations

import unicodedata

import idna

_LANGUAGES = (
    frozenset({"LATIN", "CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC"}),
    frozenset({"LATIN", "CJK", "BOPOMOFO"}),
    frozenset({"LATIN", "CJK", "HANGUL"}),
)
_OF_KANA = "KATAKANA-HIRAGANA"  # the mark of a long vowel


def mixed_scripts(host: str) -> tuple[str, ...]:
    """The scripts of the first label of `host` (lower case, punycode) that no language mixes; empty when there is no such label."""
    if "xn--" not in host:
        return ()
    for label in host.split("."):
        if label.startswith("xn--"):
            scripts = {_script(character) for character in idna.ulabel(label) if character.isalpha()} - {_OF_KANA}
            if len(scripts) > 1 and not any(scripts <= language for language in _LANGUAGES):
                return tuple(sorted(script.capitalize() for script in scripts))
    return ()


def _script(character: str) -> str:
    return unicodedata.name(character, "unknown").split()[0]
