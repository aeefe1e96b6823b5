"""This module prevents the values of placeholders from changing the path of a URL.

Clients and servers remove the path segments `.` and `..` (RFC 3986, section 5.2.4), so a value that makes a segment equal to `.` or
`..` would send the request to another path. The dots of such a segment are therefore percent-encoded. This applies to trackers and
to gateways.
"""
# Tested by tests/delivery/test_placeholders.py

from __future__ import annotations

import re

_ENCODED_DOT = re.compile("%2e", re.IGNORECASE)


def encode_dot_segments(path: str, template: str) -> str:
    """Return a filled path. In each segment that a value has made equal to `.` or `..`, each dot is replaced by `%2E`.

    `template` is the path before it was filled. Values contain no slash, so the path and the template have the same number of
    segments. A dot in the template may be percent-encoded. A segment without a placeholder stays unchanged."""
    segments = zip(path.split("/"), template.split("/"), strict=True)
    return "/".join(_encoded(new) if new != old else new for new, old in segments)


def has_dot_segments(path: str) -> bool:
    """Return whether a segment of a path is `.` or `..`, with plain or percent-encoded dots."""
    return any(_is_dot_segment(segment) for segment in path.split("/"))


def _encoded(segment: str) -> str:
    return _plain(segment).replace(".", "%2E") if _is_dot_segment(segment) else segment


def _is_dot_segment(segment: str) -> bool:
    return _plain(segment) in (".", "..")


def _plain(segment: str) -> str:
    return _ENCODED_DOT.sub(".", segment)
