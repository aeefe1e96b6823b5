"""This module determines the X-Request-Id of a response. It is the value that the client sent if this value is valid, and
otherwise a generated one.

All log lines of the request contain this id as `request_id`.
"""
# Tested by tests/server/test_request_ids.py

from __future__ import annotations

import re

HEADER = b"x-request-id"
_VALID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")


def request_id(requested: bytes, number: int) -> bytes:
    """Return the id of a request. `requested` is the header X-Request-Id of the request, or b"". `number` is a unique number from
    which an id is generated."""
    return requested if requested and _VALID.fullmatch(requested) else b"%x" % number
