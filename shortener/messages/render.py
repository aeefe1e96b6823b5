"""This module creates the rewritten body of a message, and the entry of the message in the response."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from shortener.accounts.directory import short_url
from shortener.errors import ApiError, ErrorCode
from shortener.messages.directives import DirectiveError
from shortener.messages.item_plan import SIMULATED, PlannedLink
from shortener.messages.message_warnings import find_warnings, many_segments, more_segments
from shortener.messages.plan import PlannedMessage
from shortener.messages.queries import StoredLink
from shortener.messages.segments import Segments, count_segments
from shortener.messages.sender_rules import country_problem
from shortener.messages.spans import TRACK_MODES, Span, TrackMode, find_spans, locate_spans, replace_spans
from shortener.model import record
from shortener.storage.types import from_ms, to_iso
from shortener.urls import host_name_of


@record
class RewrittenMessage:
    """A message with short links in its body. `base_url` is the scheme, host and port of all its short links."""

    message_id: str
    request_id: str
    to: str
    body: str
    links: Sequence[StoredLink]
    base_url: str
    encoding: str
    segments: int
    segments_without_rewriting: int
    warnings: tuple[str, ...]
    is_sent: bool | None = None  # whether a gateway sends the message; None: the request did not ask to send it
    cost: Decimal | None = None  # the price of the message; None: there is no price

    @property
    def sending(self) -> dict[str, Any]:
        """The fields `sent` and `cost` of the response; empty if the request did not ask to send the message."""
        if self.is_sent is None:
            return {}
        return {"sent": self.is_sent, "cost": None if self.cost is None else format(self.cost, "f")}

    def serialize(self) -> dict[str, Any]:
        """Return the JSON fields of the message in the response to the rewrite request."""
        return {
            "message_id": self.message_id,
            "message_request_id": self.request_id,
            "to": self.to,
            "body": self.body,
            "links": [
                {
                    "code": link.code,
                    "short_url": short_url(self.base_url, link.path, link.code),
                    "url": link.url,
                    "label": link.label,
                    "expires_at": _iso(link.expires_at),
                }
                for link in self.links
            ],
            "encoding": self.encoding,
            "segments": self.segments,
            "segments_without_rewriting": self.segments_without_rewriting,
            "warnings": list(self.warnings),
            **self.sending,
        }


@lru_cache(maxsize=256)
def _iso(ms: int) -> str | None:
    """Return the time of expiry of links as an ISO 8601 text. The result is cached, because all links of a message expire at the
    same time."""
    return to_iso(from_ms(ms))


def new_link(code: str, link: PlannedLink, message: PlannedMessage) -> StoredLink:
    """Return the short link that is created for a planned link of a message."""
    plan = message.plan
    return StoredLink(code, link.destination.url, link.span.label, message.expires_at, plan.domain_id, plan.link_path)


def render_new(message: PlannedMessage, links: Sequence[StoredLink], base_url: str) -> RewrittenMessage:
    """Return a new message with the links that were created from its plan."""
    plan = message.plan
    spans = [link.span for link in plan.links]
    is_sent = None if message.item.gateway is None else plan.gateway_id is not None
    body = _replace(message, spans, links, base_url)
    # The plan contains the size of the body, because counting a long text would occupy the thread that writes to the database.
    counted = plan.rewritten if plan.rewritten is not None and len(body) == plan.rewritten_length else count_segments(body)
    warnings, unchanged = plan.warnings, plan.segments_without_rewriting
    return _rewritten(message, message.request_id, body, counted, links, base_url, unchanged, warnings, is_sent)


def render_repeat(
    message: PlannedMessage,
    request_id: str,
    links: Sequence[StoredLink],
    base_url: str,
    *,
    first_track: TrackMode | None = None,
    was_sent: bool = False,
) -> RewrittenMessage:
    """Return a stored message again, created from its stored links and the body of the repeated request.

    `first_track` is the track mode of the first request, if it is known. `was_sent` is true if the message was queued for a
    gateway. Raise ApiError MESSAGE_ID_CONFLICT if a stored link is not found in the body: the text would lack this link."""
    item, track = message.item, first_track or message.plan.track
    # Search for the links with every track mode, because the default mode of the application or the rules of detection may have
    # changed since the first request.
    tracks = (track,) if item.track else (track, *(other for other in TRACK_MODES if other != track))
    try:
        track, spans = _locate(item.body, tracks, links)
    except DirectiveError:
        spans = None
    if spans is None:
        raise ApiError(
            ErrorCode.MESSAGE_ID_CONFLICT,
            f"The message {message.message_id!r} exists, but the rules of detection have changed and its text cannot be "
            "rewritten again. Its status lists its links.",
        )
    hosts = [(span, host_name_of(link.url)) for span, link in zip(spans, links, strict=True)]
    warnings = find_warnings(
        item.body, hosts, item.from_address, track=track, fallback_url=item.fallback_url, callback_url=item.callback_url
    )
    unchanged = count_segments(replace_spans(item.body, spans, [link.url for link in links])).segments
    is_sent = None if item.gateway is None else was_sent
    body = _replace(message, spans, links, base_url)
    return _rewritten(message, request_id, body, count_segments(body), links, base_url, unchanged, warnings, is_sent)


def _locate(body: str, tracks: Sequence[TrackMode], links: Sequence[StoredLink]) -> tuple[TrackMode, list[Span] | None]:
    """Return the first of the track modes that finds the stored links in a body, with the spans of the links. If no mode finds
    them, the spans are None.

    A mode that finds only the stored links has priority over a mode that also finds other URLs, because then the warnings are the
    same as in the first response. Raise DirectiveError if a directive is malformed."""
    found: tuple[TrackMode, list[Span] | None] = (tracks[0], None)
    for track in tracks:
        spans = locate_spans(body, track, [(link.url, link.label) for link in links])
        if spans is not None and (len(tracks) == 1 or len(find_spans(body, track)) == len(links)):
            return track, spans
        if found[1] is None and spans is not None:
            found = (track, spans)
    return found


def _replace(message: PlannedMessage, spans: Sequence[Span], links: Sequence[StoredLink], base_url: str) -> str:
    """Return the body of a message with its short links."""
    return replace_spans(message.item.body, spans, [short_url(base_url, link.path, link.code) for link in links])


def _rewritten(
    message: PlannedMessage,
    request_id: str,
    body: str,
    counted: Segments,
    links: Sequence[StoredLink],
    base_url: str,
    segments_without_rewriting: int,
    warnings: tuple[str, ...],
    is_sent: bool | None,
) -> RewrittenMessage:
    sender = message.item.from_address
    if (problem := country_problem(sender, message.number.country)) is not None:
        warnings = (*warnings, f"from {sender!r} {problem}")
    if is_sent is False:
        warnings = (*warnings, message.plan.not_sent)
    if is_sent and message.plan.is_simulated_by_request:
        warnings = (*warnings, SIMULATED)
    return RewrittenMessage(
        message_id=message.message_id,
        request_id=request_id,
        to=message.number.e164,
        body=body,
        links=links,
        base_url=base_url,
        encoding=counted.encoding,
        segments=counted.segments,
        segments_without_rewriting=segments_without_rewriting,
        warnings=(
            *message.number.warnings,
            *warnings,
            *more_segments(counted.segments, segments_without_rewriting),
            *many_segments(counted.segments),
        ),
        is_sent=is_sent,
    )
