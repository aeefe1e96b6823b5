"""This module returns the security headers of portal responses, and checks that a form was sent by a page of the portal itself.

A request that changes something must come from the portal. Browsers state in the header `Sec-Fetch-Site` whether a request comes
from a page of the same origin. On plain http://, browsers do not send this header, but the header `Origin` contains the origin of
the page. A request with neither header is rejected. A request from a sibling host (`same-site`) is also rejected, because short
links are often served on a sibling host. Because of this check, forms need no CSRF tokens. The portal must never send
`Referrer-Policy: no-referrer`, because browsers would then send `Origin: null`.
"""
# Tested by tests/portal/test_router.py

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.requests import Request

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)

_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "X-Robots-Tag": "noindex",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
HSTS_SECONDS = 365 * 86400


def security_headers(origin: str) -> dict[str, str]:
    """Return the headers of every portal response. `origin` is the scheme and host of the portal according to the settings."""
    headers = dict(_HEADERS)
    if origin.startswith("https://"):
        headers["Strict-Transport-Security"] = f"max-age={HSTS_SECONDS}"
    return headers


def comes_from_portal(request: Request, origin: str) -> bool:
    """Return whether a request was sent by a page of the portal. Only such a request may change anything."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return is_own_origin(request, origin, request.headers.get("origin", ""))


def is_own_origin(request: Request, origin: str, sender: str) -> bool:
    """Return whether `sender` is the scheme and the host of the portal. `sender` is a header of the request, such as `Origin`."""
    if sender == origin:
        return True
    # The portal can also be opened on localhost and on IP addresses. Therefore the host of `sender` may also be the host of the
    # header `Host`, which the service has already checked.
    try:
        parts = urlsplit(sender)
    except ValueError:  # The header contains no valid URL.
        return False
    own = urlsplit(origin)
    return bool(parts.netloc) and parts.netloc == request.headers.get("host") != own.netloc and parts.scheme in ("http", "https")
