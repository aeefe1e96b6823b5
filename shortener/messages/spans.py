"""Functions that find the spans of a message body, and replace them with short links. A span is a directive or a detected URL.

All positions count characters from the start of the body. The functions do no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from shortener.messages.directives import Directive, find_directives
from shortener.messages.url_detection import Detection, detect_urls, find_urls
from shortener.urls import UrlError, parse_destination

TrackMode = Literal["directives", "first_url", "all_urls"]
#: All track modes. `messages.track` stores indexes of this tuple, so its order must not change.
TRACK_MODES: tuple[TrackMode, ...] = get_args(TrackMode)


class Span(NamedTuple):
    """A part `body[start:end]` that is a directive or a detected URL. `url` is the destination as written, with a scheme."""

    start: int
    end: int
    url: str
    label: str | None = None
    is_trackurl: bool = False  # every click on such a link creates an event


def find_spans(
    body: str, track: TrackMode, directives: Sequence[Directive] | None = None, detection: Detection | None = None
) -> list[Span]:
    """Return the spans to replace, in text order and without overlaps. Raise DirectiveError for a malformed directive.

    `directives` are the directives of the body, and `detection` its detected URLs, if the caller has already found them.

    The mode `first_url` also returns the first detected URL if the body has no directives, and `all_urls` returns all detected
    URLs."""
    tracked, urls = _find_candidates(body, track, find_directives(body) if directives is None else directives, detection)
    return sorted(tracked + (urls[:1] if track == "first_url" else urls))


class UntrackedUrl(NamedTuple):
    """A URL `body[start:end]` that no short link replaces. `reason` is the end of a sentence that begins with the URL."""

    start: int
    end: int
    reason: str


def find_untracked(body: str, track: TrackMode, spans: Sequence[Span], detection: Detection | None = None) -> list[UntrackedUrl]:
    """Return the URLs in a body that are not in `spans`, and texts that are similar to URLs. Each has the reason why no short link
    replaces it.

    In the mode `directives`, return only the first URL, and only if the body has no directive, because the sender may have
    forgotten it."""
    if track == "directives":
        urls = [] if spans else detect_urls(body).urls[:1]
        reason = "is not tracked: `track` is `directives`, and the text contains no #track directive"
        return [UntrackedUrl(url.start, url.end, reason) for url in urls]
    detection = detect_urls(body) if detection is None else detection
    has_directives = any(span.end - span.start > len(span.url) for span in spans)
    reason = "the text has a directive" if has_directives else "only the first URL is"
    untracked = [UntrackedUrl(url.start, url.end, f"is not tracked: `track` is first_url and {reason}") for url in detection.urls]
    untracked += [UntrackedUrl(one.start, one.end, f"is not tracked: it {one.reason}") for one in detection.untrackable]
    return sorted(one for one in untracked if not any(span.start < one.end and one.start < span.end for span in spans))


def replace_spans(body: str, spans: Sequence[Span], replacements: Sequence[str]) -> str:
    """Return the body with each span replaced by the replacement at the same index. Text in replacements is never replaced.

    Raise ValueError if the numbers of spans and replacements differ."""
    parts: list[str] = []
    end = 0
    for span, replacement in zip(spans, replacements, strict=True):
        parts += (body[end : span.start], replacement)
        end = span.end
    parts.append(body[end:])
    return "".join(parts)


def locate_spans(body: str, track: TrackMode, links: Sequence[tuple[str, str | None]]) -> list[Span] | None:
    """Return the span of each stored link (url, label) in a body, in order; None if a link is not found.

    The rules of URL detection may have changed since the links were created from this body, so the indexes of links and spans may
    differ. A link matches the next span with the same URL and label. If there is none, it matches the next occurrence of its URL in
    the text."""
    directives, urls = _find_candidates(body, track, find_directives(body))
    candidates = iter(sorted(directives + urls))
    located: list[Span] = []
    for url, label in links:
        position = located[-1].end if located else 0
        span = next((one for one in candidates if one.label == label and _stored_url(one.url) == url), None)
        if span is None and label is None and track != "directives":
            candidates = iter(())  # the spans differ from the stored links, so search the rest of the text for URLs
            span = _find_text(body, url, position, directives)
        if span is None:
            return None
        located.append(span)
    return located


def _find_candidates(
    body: str, track: TrackMode, found: Sequence[Directive], detection: Detection | None = None
) -> tuple[list[Span], list[Span]]:
    """Return the spans of the directives that were found, and of all URLs outside of them that this track mode may replace."""
    directives = [Span(one.start, one.end, one.url, one.label, one.kind == "trackurl") for one in found]
    if track == "directives" or (track == "first_url" and directives):
        return directives, []
    urls = [
        Span(url.start, url.end, url.url)
        for url in (find_urls(body) if detection is None else detection.urls)
        if not any(span.start < url.end and url.start < span.end for span in directives)
    ]
    return directives, urls


def _stored_url(url: str) -> str | None:
    try:
        return parse_destination(url, {url.partition(":")[0].lower()}).url
    except UrlError:
        return None


def _find_text(body: str, url: str, position: int, directives: Sequence[Span]) -> Span | None:
    """Return the next place in the text, outside of directives, at which a URL is written with or without its scheme; None if there
    is none.

    The search ignores case, because hosts are stored in lower case."""
    for written in (url, url.removeprefix("http://")):
        for match in re.compile(re.escape(written), re.IGNORECASE).finditer(body, position):
            if not any(span.start < match.end() and match.start() < span.end for span in directives):
                return Span(match.start(), match.end(), url)
    return None
