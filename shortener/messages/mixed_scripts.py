"""This module detects host names that mix scripts, as look-alike hosts do: the first letter of `аpple.example` is Cyrillic.

Legitimate hosts with mixed scripts exist, so callers warn about such a host and do not reject it. The Unicode name of a letter
contains its script. Combinations of scripts that languages use are accepted: Japanese, Chinese and Korean, each together with
Latin (Unicode TR 39, "highly restrictive"). A word that is completely in another script and looks like Latin (`сосо`) is not
detected.
"""

from __future__ import annotations

import unicodedata

from shortener.host_labels import decode_label

_PERMITTED_COMBINATIONS = (
    frozenset({"LATIN", "CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC"}),
    frozenset({"LATIN", "CJK", "BOPOMOFO"}),
    frozenset({"LATIN", "CJK", "HANGUL"}),
)
_KANA_VOWEL_MARK = "KATAKANA-HIRAGANA"  # the long vowel mark belongs to both Katakana and Hiragana


def mixed_scripts(host: str) -> tuple[str, ...]:
    """Return the scripts of the first DNS label of `host` that mixes scripts which no language uses together. Return () if there is
    no such label.

    `host` must be in lower case, with international labels in punycode (`xn--`)."""
    if "xn--" not in host:
        return ()
    for label in host.split("."):
        if label.startswith("xn--"):
            scripts = {_script(character) for character in decode_label(label) if character.isalpha()} - {_KANA_VOWEL_MARK}
            if len(scripts) > 1 and not any(scripts <= permitted for permitted in _PERMITTED_COMBINATIONS):
                return tuple(sorted(script.capitalize() for script in scripts))
    return ()


def _script(character: str) -> str:
    return unicodedata.name(character, "unknown").split()[0]
