"""Warnings about a rewritten message: problems that phones or carriers may have with it. A warning never rejects a message."""

from __future__ import annotations

from collections.abc import Sequence

from shortener.messages.phone_numbers import check_sender
from shortener.messages.scripts import mixed_scripts
from shortener.messages.spans import Span


def find_warnings(body: str, links: Sequence[tuple[Span, str]], sender: str) -> tuple[str, ...]:
    """Return all warnings as texts for people. `links`: each span with the host of its destination (lower case, punycode)."""
    return (
        *_attached_text(body, [span for span, _ in links]),
        *_mixed_scripts(links),
        *_unusual_sender(sender),
    )


def _attached_text(body: str, spans: Sequence[Span]) -> list[str]:
    """Warn about letters and punctuation directly next to a link, because phones treat them as part of the link."""
    warnings = []
    for span in spans:
        before, after = body[max(span.start - 1, 0) : span.start], body[span.end : span.end + 1]
        if before.isalnum() or after.isalnum() or (after and after in "/?#&=%-_~+@:"):
            warnings.append(f"position {span.start}: text is attached to the short link; phones may treat it as part of the link")
    return warnings


def _mixed_scripts(links: Sequence[tuple[Span, str]]) -> list[str]:
    """Warn about hosts that resemble other hosts, because phones may warn about them and carriers may block them."""
    return [
        f"position {span.start}: the host {host} mixes {' and '.join(scripts)} letters, as look-alikes do"
        for span, host in links
        if (scripts := mixed_scripts(host))
    ]


def _unusual_sender(sender: str) -> list[str]:
    """Warn about a sender that 23 Telecom rejects. Other carriers accept it, so it is not an error."""
    reason = check_sender(sender) if sender else None
    return [f"from {sender!r} {reason}; carriers may reject it"] if reason else []
