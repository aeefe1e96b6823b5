"""The URL paths of the sign-in pages, and the URLs of the pages to which an operator returns after the sign-in."""

# Tested by tests/portal/test_signin.py

from __future__ import annotations

import re
from urllib.parse import quote, urlencode, urlsplit

from starlette.requests import Request

from shortener.delivery.dot_segments import has_dot_segments
from shortener.portal.invitation_url import PATH as WELCOME_PATH
from shortener.portal.page import NAME_QUERY, url
from shortener.portal.security import SAFE_METHODS, is_own_origin

SIGN_IN_PATH = "/portal/signin"
CODE_PATH = "/portal/signin/code"
CONFIRM_PATH = "/portal/confirm"
#: The query parameter with which the sign-in page says that a form was not sent and that its entries are lost.
LOST_FORM_QUERY = "form-lost"


def location_of(request: Request) -> str:
    """Return the path and the query of a request as a root-relative URL. The path stays percent-encoded, as the client sent
    it."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query = request.url.query
    return quote(raw, safe="/~@:+,;=!$&'()*%") + ("?" + query if query else "")


def _next_of(request: Request) -> str | None:
    """Return the URL to which the operator continues after the sign-in; None means the first page of the portal. After a GET
    request, it is the URL of the request. After a form, it is only the path, with the query parameter `name` if there is one:
    this parameter replaces a part of the path (`page.url`)."""
    if request.url.path in ("/portal", "/portal/"):
        return None
    location = location_of(request)
    if request.method in SAFE_METHODS:
        return location
    name = request.query_params.get(NAME_QUERY)
    return location.partition("?")[0] + ("" if name is None else "?" + urlencode({NAME_QUERY: name}))


def sign_in_first(request: Request, path: str) -> str:
    """Return the URL to which this request is redirected: the sign-in page at `path`. Its query contains the URL to which the
    operator continues after the sign-in. If the request is a form, the sign-in page says that the form was not sent."""
    return url(path, {"next": _next_of(request), LOST_FORM_QUERY: None if request.method in SAFE_METHODS else "1"})


def previous_page(request: Request, default: str = "/portal/me") -> str:
    """Return the URL of the portal page that contains the form of this request, from the header Referer."""
    return _portal_referer(request)[1] or default


def page_before(request: Request, origin: str) -> str | None:
    """Return the URL of the portal page from which the operator came, from the header Referer. Return None if another site or a
    sign-in page sent the operator, or if this page is the page of the request itself. `origin` is the origin of the portal."""
    sender, location = _portal_referer(request)
    if location is None or not is_own_origin(request, origin, sender):
        return None
    is_same = request.method in SAFE_METHODS and location == location_of(request)
    is_sign_in = location.startswith((SIGN_IN_PATH, CONFIRM_PATH, WELCOME_PATH))
    return None if is_same or is_sign_in else location


def _portal_referer(request: Request) -> tuple[str, str | None]:
    """Return two parts of the URL in the header Referer: its origin, and its path with the query. The second part is None if the
    URL is not that of a portal page."""
    try:
        parts = urlsplit(request.headers.get("referer", ""))
    except ValueError:  # The header contains no valid URL.
        return "", None
    location = parts.path + ("?" + parts.query if parts.query else "")
    return f"{parts.scheme}://{parts.netloc}", safe_next(location, "") or None


def safe_next(location: str | None, default: str = "/portal/") -> str:
    """Return `location`, the URL to which the operator continues after a sign-in, if it is a page of the portal. Otherwise return
    `default`. A manipulated sign-in URL can therefore not redirect an operator to another site.

    URLs with the path segments `.` and `..` (also percent-encoded) are not pages of the portal: a browser would open
    `/portal/../CODE` as `/CODE`, a short link that can lead to any site."""
    if location is None or not location.startswith("/portal/") or "\\" in location or not location.isprintable():
        return default
    if has_dot_segments(re.split("[?#]", location, maxsplit=1)[0]):
        return default
    return location
