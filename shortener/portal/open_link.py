"""GET /portal/open/{code}.{signature}: open the destination of a link for a test, without counting a click.

The URL is valid for ten minutes and needs no session, so that a phone can open it from a QR code. The response is a redirect to the
current destination, and nothing is stored. A request for the real short link would count as a click of its recipient.
"""
# Tested by tests/portal/test_pages.py

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import timedelta

from starlette.responses import RedirectResponse, Response

from shortener.clicks.link_details import disabled_by, find_link
from shortener.errors import ApiError, ErrorCode
from shortener.portal.page import PortalPage, Visit

VALID = timedelta(minutes=10)
_SIGNATURE_BYTES = 12


def open_url(visit: Visit, code: str) -> str:
    """Return the root-relative URL that opens the destination of a link without counting a click."""
    expires = int((visit.now + VALID).timestamp())
    return f"/portal/open/{code}.{expires:x}-{_sign(visit, code, expires)}"


def _sign(visit: Visit, code: str, expires: int) -> str:
    key = visit.service.secret.key("open without a click")
    digest = hmac.digest(key, f"{code} {expires}".encode(), hashlib.sha256)[:_SIGNATURE_BYTES]
    return base64.urlsafe_b64encode(digest).decode()


async def open_link(visit: Visit) -> Response:
    """Redirect to the destination of a link. Raise ApiError NOT_FOUND for a wrong or expired signature."""
    code, _, signature = visit.path["signed"].partition(".")
    expires_text, _, signed = signature.partition("-")
    try:
        expires = int(expires_text, 16)
    except ValueError:
        raise ApiError(ErrorCode.NOT_FOUND) from None
    is_valid = hmac.compare_digest(signed.encode(), _sign(visit, code, expires).encode())
    if not is_valid or expires < visit.now.timestamp():
        raise ApiError(ErrorCode.NOT_FOUND, "This address is valid for ten minutes only. Open the page of the link again.")
    row = await visit.service.database.read(find_link, code)
    if not row.url or disabled_by(visit.service.directory, row) is not None:
        raise ApiError(ErrorCode.NOT_FOUND, "This link is disabled or erased.")
    return RedirectResponse((row.location or row.url).replace("{click_id}", "test"), 302)


PAGES = [PortalPage("/portal/open/{signed}", open_link, is_public=True)]
