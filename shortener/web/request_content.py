"""This module returns the content by which a repeat of a request is recognized. It is stored with the Idempotency-Key, because a
repeat must have the same content as the first request.

The content has only the fields that the caller sent, in a fixed order. It contains neither fields that a new release adds,
nor default values, which a new release can change. Therefore a new release still recognizes repeats of requests that an earlier
release stored.

Release 0.2 also stored the defaults of all fields. `content_of_0_2` returns the content in this older form, so that repeats are
recognized after an upgrade from 0.2. It is needed only for 24 hours after the upgrade, because stored contents are deleted after
this time.
"""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel

_NAMES = """
body bulkId callbackData campaign customDomain deliveryTimeWindow destinations expires_at expires_in external_message_request_id
fallback_url flash from intermediateReport language lt_callbackurl message messageId message_id message_request_id messages metadata
mt_price notifyContentType notifyUrl recipient regional removeProtocol sendAt sender sender_id_alias sender_id_id shortenUrl source
text to track trackClicks track_link tracking transliteration type urlOptions validityPeriod
"""
_FIELDS_OF_0_2 = frozenset(_NAMES.split())


def sent_content(body: BaseModel) -> bytes:
    """Return the fields of a request that the caller sent, as JSON."""
    return _dumps(body.model_dump(mode="json", by_alias=True, exclude_unset=True))


def content_of_0_2(body: BaseModel) -> bytes:
    """Return the content of a request in the form in which release 0.2 stored it, as JSON."""
    complete = body.model_dump(mode="json", by_alias=True)
    return _dumps(_reduce(complete, body.model_dump(mode="json", by_alias=True, exclude_unset=True)))


def _reduce(complete: Any, sent: Any) -> Any:
    """Remove the fields that release 0.2 did not have, unless the caller sent them."""
    if isinstance(complete, dict) and isinstance(sent, dict):
        fields = {
            name: _reduce(value, sent.get(name)) for name, value in complete.items() if name in _FIELDS_OF_0_2 or name in sent
        }
        if fields.get("track", "") is None:  # Release 0.2 stored this default for an absent `track`.
            fields["track"] = "directives"
        return fields
    if isinstance(complete, list) and isinstance(sent, list) and len(complete) == len(sent):
        return [_reduce(one, other) for one, other in zip(complete, sent, strict=True)]
    return complete


def _dumps(content: Any) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
