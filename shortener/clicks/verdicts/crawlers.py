"""The list of crawlers and HTTP libraries in the package `crawler-user-agents`, compiled into one fast search.

The list has about 1,500 regular expressions, and nearly all of them are plain words. The package searches for each expression
separately, which takes 100 microseconds for a user agent that matches none. Here, the beginnings of the words form one expression,
a trie, which usually fails at the first letters. The few expressions that are not plain words are applied after it. Except for the
patterns in `NOT_CRAWLERS`, the results are the same as those of the package.

The list is read when this module is imported. A damaged package therefore prevents the start of the service. It does not cause
errors in later requests.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

#: Patterns of the list that also match the user agents of people's phones. They are left out. The request rules recognise the
#: programs with these names in another way.
NOT_CRAWLERS = frozenset(
    {
        r"AP3A\.240617\.008",  # a build of Android 15 that many manufacturers use
        "MetaIAB Facebook",  # the browser inside Facebook's own apps
        "Sogou",  # SogouMobileBrowser is a browser; the user agents of Sogou's crawlers contain "spider"
        r"008\/",  # the end of some model names; the user agent of the crawler 80legs contains a web address
        "Viber",  # the browser inside Viber; the user agent of Viber's link preview is only this word
        "WhatsApp",  # the browser inside WhatsApp; the user agent of WhatsApp's link preview begins with this word
    }
)

# One element of a simple pattern, which matches only a few different texts. The element is an escaped character, a set of letters
# ([wW]), alternative words (Bot|Audit), the start or a space (^| ), or a plain character.
_PIECE = re.compile(r"\\(?P<sign>[^\w])|\[(?P<letters>\w+)\]|\((?P<words>[\w ^|]+)\)|(?P<plain>[^\\\[\](){}|*+?.])", re.DOTALL)

# A regular expression for a pattern that is a plain word, as nearly all are. Only the other patterns are split by `_PIECE`, which
# takes longer.
_PLAIN_WORD = re.compile(r"(?:\\[^\w]|[^\\\[\](){}|*+?.^$])+", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

# A user agent contains no line breaks, so line breaks can mark its start and end: `^curl` becomes the word "\ncurl".
_END = "\n"

_NEVER = r"(?!)"

#: For each word, the expression contains the beginning that the word shares with other words, and then this number of further
#: characters. The rest of the word is compared after a match. An expression with all characters would take twice as long to
#: compile, at each start of the service.
_OWN_CHARACTERS = 4


def find_crawler(agent: str) -> str | None:
    """Return the part of the user agent that a pattern of the list matches, such as `python-requests`. Return None if no pattern
    matches."""
    return _LIST.find(agent)


class CrawlerList:
    """A list of regular expressions, compiled into one search."""

    def __init__(self, patterns: Iterable[str]) -> None:
        words, expressions = split_patterns(patterns)
        self._words: dict[str, str] = {}  # the complete word for each beginning that `_beginnings` matches
        self._beginnings = re.compile(trie_expression(words, _OWN_CHARACTERS, self._words))
        self._expressions = re.compile("|".join(expressions) or _NEVER, re.MULTILINE)

    def find(self, agent: str) -> str | None:
        """Return the part of the user agent that a pattern matches, or None if no pattern matches."""
        text = f"{_END}{agent}{_END}"
        found = self._beginnings.search(text)
        while found is not None:
            word = self._words[found[0]]
            if text.startswith(word, found.start()):
                return word.strip()
            found = self._beginnings.search(text, found.start() + 1)
        found = self._expressions.search(text)
        return found[0].strip() if found else None


def split_patterns(patterns: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return two lists: all words that the simple patterns match, and the other patterns. A simple pattern matches only a few
    words. In the words, a line break stands for the start or the end of the user agent."""
    words: list[str] = []
    expressions: list[str] = []
    for pattern in patterns:
        if _PLAIN_WORD.fullmatch(pattern):
            words.append(_ESCAPE.sub(r"\1", pattern))
            continue
        # A vertical bar outside of parentheses separates whole patterns.
        for part in [pattern] if "(" in pattern else pattern.split("|"):
            texts = _matching_texts(part)
            if texts is None:
                expressions.append(part)
            else:
                words.extend(texts)
    return words, expressions


def _matching_texts(pattern: str) -> list[str] | None:
    """Return every text that the pattern matches, or None if the pattern is not simple (see `split_patterns`)."""
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
    return ["".join(text) for text in itertools.product(*choices)]


def trie_expression(words: Iterable[str], own_characters: int | None = None, beginnings: dict[str, str] | None = None) -> str:
    """Return a regular expression in the shape of a trie that matches all words. If there are no words, it matches nothing.

    With `own_characters`, the expression does not contain the whole word: it contains the beginning that the word shares with
    other words, and then this number of further characters. `beginnings` is filled with the complete word for each text that the
    expression matches."""
    needed: list[str] = []
    for word in sorted(words):
        # A word that begins with another word of the list is left out: a text that contains it also contains the shorter word.
        if not needed or not word.startswith(needed[-1]):
            needed.append(word)
    return _alternatives(needed, 0, own_characters, beginnings if beginnings is not None else {}) if needed else _NEVER


def _alternatives(words: Sequence[str], start: int, own_characters: int | None, beginnings: dict[str, str]) -> str:
    """Return an expression that matches the rest of each word from the index `start` on. The words are sorted. Their first
    `start` characters are equal, and the caller's expression matches these characters."""
    first, last = words[0], words[-1]
    if first is last:
        beginning = first if own_characters is None else first[: start + own_characters]
        beginnings[beginning] = first
        return re.escape(beginning[start:])
    end = start
    while first[end] == last[end]:
        end += 1
    branches = [
        _alternatives(list(group), end, own_characters, beginnings)
        for _, group in itertools.groupby(words, key=lambda word: word[end])
    ]
    return f"{re.escape(first[start:end])}(?:{'|'.join(branches)})"


def _patterns() -> list[str]:
    """Return the patterns of the package without NOT_CRAWLERS.

    The file is read directly: an import of the package would keep its data of 1.4 MB in memory."""
    spec = find_spec("crawleruseragents")
    assert spec is not None
    assert spec.origin is not None
    entries: list[dict[str, Any]] = orjson.loads(Path(spec.origin).with_name("crawler-user-agents.json").read_bytes())
    return [entry["pattern"] for entry in entries if entry["pattern"] not in NOT_CRAWLERS]


_LIST = CrawlerList(_patterns())
