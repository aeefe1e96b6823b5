"""This module computes the preview of a rewrite: the response that a request would get, with sample codes. It uses the plan
of the request, and nothing is stored."""
# Tested by tests/web/test_preview.py

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shortener.messages.plan import PlannedMessage, PlannedRequest
from shortener.messages.refusals import Refusals
from shortener.messages.render import new_link, render_new


def preview_request(request: PlannedRequest, sample_code: Callable[[], str]) -> list[dict[str, Any]]:
    """Return one entry per recipient in request order, as if no message were a repeat. Raise ApiError if a problem rejects the
    request.

    `sample_code` returns a code of the usual length."""
    refused = Refusals(request, request.check(request.messages))
    previews = {
        (message.item_index, message.recipient): _preview(message, sample_code)
        for message in request.messages
        if refused.find(message.item_index, message.recipient) is None
    }
    return [
        previews[place] if (place := (index, recipient)) in previews else refused.serialize(index, recipient)
        for index, item in enumerate(request.items)
        for recipient in item.places
    ]


def _preview(message: PlannedMessage, sample_code: Callable[[], str]) -> dict[str, Any]:
    plan = message.plan
    links = [new_link(sample_code(), link, message) for link in plan.links]
    # A preview sends nothing, so its response has no fields about sending. The name of the gateway is still checked.
    return replace(render_new(message, links, plan.base_url), is_sent=None).serialize()
