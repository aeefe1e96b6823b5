"""Warnings about a rewritten message: what the sender of it needs to know. A warning never rejects a message."""

from __future__ import annotations

import re
from collections.abc import Sequence

from shortener.macros import macro_problems
from shortener.messages.phone_numbers import check_sender
from shortener.messages.scripts import mixed_scripts
from shortener.messages.spans import Span, TrackMode, find_untracked
from shortener.urls import DESTINATION_PLACEHOLDERS

MAX_UNTRACKED = 20  # URLs without a link that one message reports
_MAX_URL_CHARACTERS = 80  # of a URL in a warning
# What may follow a link without a warning: the end of a sentence or of a quotation.
_HARMLESS_AFTER = re.compile(r"(?!\?)[.,;:!?'\")\]}>*’”»›。、，！？；：）」』】]*(?:\s|\Z)")
# Letters and digits, and signs after which phones do not begin a link.
_ATTACHED_BEFORE = re.compile(r"[\w@./\\=&%#+~$-]")


def find_warnings(
    body: str, links: Sequence[tuple[Span, str]], sender: str, *, track: TrackMode = "directives", fallback_url: str | None = None
) -> tuple[str, ...]:
    """Return all warnings as texts for people. `links`: each span with the host of its destination (lower case, punycode).

    The warnings that depend on the rewritten text are not among them."""
    spans = [span for span, _ in links]
    return (
        *_untracked(body, spans, track),
        *_attached_text(body, spans),
        *_suspicious_destinations(links),
        *(
            [f"fallback_url {problem}" for problem in macro_problems(fallback_url, DESTINATION_PLACEHOLDERS)]
            if fallback_url
            else []
        ),
        *_unusual_sender(sender),
    )


def more_segments(segments: int, segments_without_rewriting: int) -> tuple[str, ...]:
    """Return a warning if the short links make a text longer than the long URLs do."""
    if segments <= segments_without_rewriting:
        return ()
    return (f"the text needs {segments} segments with short links, but {segments_without_rewriting} with the long URLs",)


def _untracked(body: str, spans: Sequence[Span], track: TrackMode) -> list[str]:
    found = find_untracked(body, track, spans)
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
    """Warn about look-alike hosts, which carriers may block, and about parts of a URL that its site will not understand."""
    warnings = []
    for span, host in links:
        if scripts := mixed_scripts(host):
            warnings.append(f"position {span.start}: the host {host} mixes {' and '.join(scripts)} letters, as look-alikes do")
        if "&amp;" in span.url:
            warnings.append(f"position {span.start}: the destination contains &amp;, which browsers send unchanged; write &")
        if "’" in span.url:
            warnings.append(f"position {span.start}: the destination contains the apostrophe ’; web addresses usually have '")
        problems = macro_problems(span.url, DESTINATION_PLACEHOLDERS)
        warnings += [f"position {span.start}: the destination {problem}" for problem in problems]
    return warnings


def _unusual_sender(sender: str) -> list[str]:
    """Warn about a sender that 23 Telecom rejects. Other carriers accept it, so it is not an error."""
    reason = check_sender(sender) if sender else None
    return [f"from {sender!r} {reason}; carriers may reject it"] if reason else []


def _shorten(url: str) -> str:
    return url if len(url) <= _MAX_URL_CHARACTERS else f"{url[:_MAX_URL_CHARACTERS]}..."
