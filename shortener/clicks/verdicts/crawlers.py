"""The list of crawlers and HTTP libraries in the package `crawler-user-agents`, compiled into one fast search.

The list has about 1,500 regular expressions, and nearly all of them are plain words. The package searches for each expression
separately, which takes 100 microseconds for a user agent that matches none. Here, the words form one expression in the shape of a
trie, which usually fails at the first letters. The few other expressions are applied after it. The result equals that of the
package, without the patterns in `NOT_CRAWLERS`.

The list is read when this module is imported. So a damaged package prevents the start of the service, and causes no errors in later
requests.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

#: Patterns of the list that also match the user agents of people's phones. They are left out.
NOT_CRAWLERS = frozenset(
    {
        r"AP3A\.240617\.008",  # a build of Android 15 that many manufacturers use
        "MetaIAB Facebook",  # the browser inside Facebook's own apps
        "Sogou",  # SogouMobileBrowser is a browser; the user agents of Sogou's crawlers contain "spider"
        r"008\/",  # the end of some model names; the user agent of the crawler 80legs also contains its web address
        "Viber",  # the browser inside Viber; the user agent of Viber's link preview is only this word
        "WhatsApp",  # the browser inside WhatsApp; the user agent of WhatsApp's link preview begins with this word
    }
)

# One element of a pattern that matches only a few different texts. The element is an escaped character, a set of letters ([wW]),
# alternative words (Bot|Audit), the start or a space (^| ), or a plain character.
_PIECE = re.compile(r"\\(?P<sign>[^\w])|\[(?P<letters>\w+)\]|\((?P<words>[\w ^|]+)\)|(?P<plain>[^\\\[\](){}|*+?.])", re.DOTALL)

# A user agent contains no line breaks, so line breaks can mark its start and end: `^curl` becomes the word "\ncurl".
_END = "\n"

_NEVER = r"(?!)"

_Trie = dict[str, "_Trie"]


def find_crawler(agent: str) -> str | None:
    """Return the part of the user agent that a pattern of the list matches, such as `python-requests`. Return None if no pattern
    matches."""
    text = f"{_END}{agent}{_END}"
    found = _WORDS.search(text) or _EXPRESSIONS.search(text)
    return found[0].strip() if found else None


def compile_list(patterns: Iterable[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return one expression for all words (a trie) and one for all other patterns. Both search text that begins and ends with a
    line break."""
    words: list[str] = []
    expressions: list[str] = []
    for pattern in patterns:
        # A vertical bar outside of parentheses separates whole patterns.
        for part in [pattern] if "(" in pattern else pattern.split("|"):
            texts = _matching_texts(part)
            if texts is None:
                expressions.append(part)
            else:
                words.extend(texts)
    return re.compile(_trie_expression(words) or _NEVER), re.compile("|".join(expressions) or _NEVER, re.MULTILINE)


def _matching_texts(pattern: str) -> list[str] | None:
    """Return every text that the pattern matches, or None if the pattern is not a combination of a few words."""
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


def _trie_expression(words: Iterable[str]) -> str:
    root: _Trie = {}
    for word in words:
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return _alternatives(root) if root else ""


_escape = cache(re.escape)  # the trie has 15,000 characters and few different ones


def _alternatives(node: _Trie) -> str:
    if "" in node:  # a word ends here, so longer words with this beginning need not be searched
        return ""
    branches = [_escape(character) + _alternatives(child) for character, child in sorted(node.items())]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _patterns() -> list[str]:
    """Return the patterns of the package without NOT_CRAWLERS.

    The package itself is not imported, because it would keep its data of 1.4 MB in memory."""
    spec = find_spec("crawleruseragents")
    assert spec is not None
    assert spec.origin is not None
    entries: list[dict[str, Any]] = orjson.loads(Path(spec.origin).with_name("crawler-user-agents.json").read_bytes())
    return [entry["pattern"] for entry in entries if entry["pattern"] not in NOT_CRAWLERS]


_WORDS, _EXPRESSIONS = compile_list(_patterns())
