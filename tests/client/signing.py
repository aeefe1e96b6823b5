"""Functions that sign requests as the service does when it sends them to a tracker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from shortener.secret import new_signing_secret
from shortener.signatures import parse_secret, sign

SECRET = new_signing_secret()


def signed_now(data: Mapping[str, Any], event_id: str = "evt_1") -> tuple[dict[str, str], bytes]:
    """Return (headers, body) of a request that is signed with the current time."""
    body = json.dumps(data).encode()
    return sign(event_id, datetime.now(UTC), body, [parse_secret(SECRET)]), body
