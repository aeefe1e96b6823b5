"""This module finds warnings about a rewritten message, for the caller who sends the message. A warning never rejects a message."""

from __future__ import annotations

import re
from collections.abc import Sequence

from shortener.accounts.link_targets import target_warnings
from shortener.macros import entity_problems
from shortener.messages.mixed_scripts import mixed_scripts
from shortener.messages.sender_rules import check_sender
from shortener.messages.spans import Span, TrackMode, find_untracked
from shortener.messages.url_detection import Detection

MAX_USUAL_SEGMENTS = 10  # a text with more segments causes a warning
MAX_UNTRACKED = 20  # a message has warnings about at most this many URLs without a short link
_MAX_URL_CHARACTERS = 80  # a warning quotes at most this many characters of a URL
# These characters may directly follow a short link without a warning: the end of a sentence or of a quotation.
_HARMLESS_AFTER = re.compile(r"(?!\?)[.,;:!?'\")\]}>*’”»›。、，！？；：）」』】]*(?:\s|\Z)")
# Characters that cause a warning if they directly precede a short link, because phones then do not detect the link.
_ATTACHED_BEFORE = re.compile(r"[\w@./\\=&%#+~$-]")


def find_warnings(
    body: str,
    links: Sequence[tuple[Span, str]],
    sender: str,
    *,
    track: TrackMode = "directives",
    fallback_url: str | None = None,
    callback_url: str | None = None,
    detection: Detection | None = None,
) -> tuple[str, ...]:
    """Return the warnings about a message, except warnings that depend on the rewritten text.

    `links` contains each span that a short link replaces, and the host of its destination in lower case and punycode.
    `detection` contains the detected URLs of the body, if the caller has already found them."""
    spans = [span for span, _ in links]
    return (
        *_untracked(body, spans, track, detection),
        *_attached_text(body, spans),
        *_suspicious_destinations(links),
        *([f"fallback_url {problem}" for problem in target_warnings(fallback_url)] if fallback_url else []),
        *(f"lt_callbackurl {problem}" for problem in entity_problems(callback_url or "")),
        *_unusual_sender(sender),
    )


def many_segments(segments: int) -> tuple[str, ...]:
    """Return a warning if a text has more segments than carriers usually accept; else an empty tuple."""
    if segments <= MAX_USUAL_SEGMENTS:
        return ()
    return (f"the text needs {segments} segments; many carriers reject or cut a text of more than {MAX_USUAL_SEGMENTS}",)


def more_segments(segments: int, segments_without_rewriting: int) -> tuple[str, ...]:
    """Return a warning if the text with short links needs more segments than the original text; else an empty tuple."""
    if segments <= segments_without_rewriting:
        return ()
    return (f"the text needs {segments} segments with short links, but {segments_without_rewriting} with the long URLs",)


def _untracked(body: str, spans: Sequence[Span], track: TrackMode, detection: Detection | None) -> list[str]:
    found = find_untracked(body, track, spans, detection)
    warnings = [f"position {one.start}: {_shorten(body[one.start : one.end])} {one.reason}" for one in found[:MAX_UNTRACKED]]
    if track != "directives" and not spans:
        warnings.append(f"the text has no link: `track` is {track}, but it contains no URL that can be tracked")
    return warnings


def _attached_text(body: str, spans: Sequence[Span]) -> list[str]:
    """Warn about text directly next to a link, because phones may treat it as part of the link."""
    warnings = []
    for span in spans:
        before = body[max(span.start - 1, 0) : span.start]
        if _ATTACHED_BEFORE.match(before) or _HARMLESS_AFTER.match(body, span.end) is None:
            warnings.append(f"position {span.start}: text is attached to the short link; phones may treat it as part of the link")
    return warnings


def _suspicious_destinations(links: Sequence[tuple[Span, str]]) -> list[str]:
    """Warn about look-alike hosts, which carriers may block, and about HTML entities and unknown macros in destinations."""
    warnings = []
    for span, host in links:
        if scripts := mixed_scripts(host):
            warnings.append(f"position {span.start}: the host {host} mixes {' and '.join(scripts)} letters, as look-alikes do")
        if "’" in span.url:
            warnings.append(f"position {span.start}: the destination contains the apostrophe ’; web addresses usually have '")
        warnings += [f"position {span.start}: the destination {problem}" for problem in target_warnings(span.url)]
    return warnings


def _unusual_sender(sender: str) -> list[str]:
    """Return a warning about a sender id that 23 Telecom rejects. It is not an error, because other carriers accept such a sender
    id."""
    reason = check_sender(sender) if sender else None
    return [f"from {sender!r} {reason}; carriers may reject it"] if reason else []


def _shorten(url: str) -> str:
    return url if len(url) <= _MAX_URL_CHARACTERS else f"{url[:_MAX_URL_CHARACTERS]}..."
