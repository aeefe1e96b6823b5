"""The packaged list of crawlers and HTTP libraries (`crawler-user-agents`), compiled into one fast search.

The list holds about 1,500 regular expressions, nearly all of them plain words. Tried one after the other, as the package does,
they cost a hundred microseconds for an agent that matches none, which is every person's. Here the words are folded into one
expression shaped as a trie, which fails on the first letters, and the few true expressions are tried after it. What matches is
exactly what the package would match, less `NOT_CRAWLERS`.

The list is read when this module is imported; a damaged package fails there, not on a hit.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from crawleruseragents import CRAWLER_USER_AGENTS_DATA

#: Patterns of the list that people's phones match too, and that are therefore left out.
NOT_CRAWLERS = frozenset(
    {
        r"AP3A\.240617\.008",  # a build of Android 15 that many makers ship
        "MetaIAB Facebook",  # the browser inside Facebook's own apps
        "Sogou",  # SogouMobileBrowser; Sogou's crawlers call themselves spiders
        r"008\/",  # the end of many a model's name; 80legs gives its address with it
        "Viber",  # the browser inside Viber names it; the preview is the bare word
        "WhatsApp",  # likewise
    }
)

# One piece of a pattern that stands for a few spellings: an escaped sign, [wW], (Bot|Audit) or (^| ), a plain character.
_PIECE = re.compile(r"\\(?P<sign>[^\w])|\[(?P<letters>\w+)\]|\((?P<words>[\w ^|]+)\)|(?P<plain>[^\\\[\](){}|*+?.])", re.DOTALL)

# An agent has no line breaks, so they can stand for its ends: `^curl` becomes the word "\ncurl".
_END = "\n"

_NEVER = r"(?!)"

_Trie = dict[str, "_Trie"]


def find_crawler(agent: str) -> str | None:
    """The words by which the list knows `agent` as a crawler or library, such as `python-requests`; None if it does not know it."""
    text = f"{_END}{agent}{_END}"
    found = _WORDS.search(text) or _EXPRESSIONS.search(text)
    return found[0].strip() if found else None


def compile_list(patterns: Iterable[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The patterns as one trie of all words, and one alternation of what is more than words. Both want text between line breaks."""
    words: list[str] = []
    expressions: list[str] = []
    for pattern in patterns:
        # A bar outside of parentheses separates whole patterns.
        for part in [pattern] if "(" in pattern else pattern.split("|"):
            spelled = _spellings(part)
            if spelled is None:
                expressions.append(part)
            else:
                words.extend(spelled)
    return re.compile(_trie_expression(words) or _NEVER), re.compile("|".join(expressions) or _NEVER, re.MULTILINE)


def _spellings(pattern: str) -> list[str] | None:
    """Every text that the pattern matches, or None if it is more than a handful of words."""
    choices: list[Sequence[str]] = []
    at = 0
    while at < len(pattern):
        piece = _PIECE.match(pattern, at)
        if piece is None:
            return None
        if piece["words"] is not None:
            choices.append([word.replace("^", _END) for word in piece["words"].split("|")])
        elif piece["plain"] is not None:
            choices.append([_END if piece["plain"] in "^$" else piece["plain"]])
        else:
            choices.append(piece["letters"] or piece["sign"])
        at = piece.end()
    return ["".join(spelling) for spelling in itertools.product(*choices)]


def _trie_expression(words: Iterable[str]) -> str:
    root: _Trie = {}
    for word in words:
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return _alternatives(root) if root else ""


def _alternatives(node: _Trie) -> str:
    if "" in node:  # a word ends here: whatever goes on after it need not be looked at
        return ""
    branches = [re.escape(character) + _alternatives(child) for character, child in sorted(node.items())]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _patterns(entries: Iterable[dict[str, Any]]) -> list[str]:
    return [entry["pattern"] for entry in entries if entry["pattern"] not in NOT_CRAWLERS]


_WORDS, _EXPRESSIONS = compile_list(_patterns(CRAWLER_USER_AGENTS_DATA))
