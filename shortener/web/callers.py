"""This module checks the credential of a request to the API: an API key, a tracker token or a postback key. It finds the owner of
the credential, and checks the permission and the rate limit. If the credential is missing or wrong, the error text says which
credential the call requires. It also says if the request contains a credential of another kind or in another header.
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from starlette.requests import Request

from shortener.accounts.directory import Principal
from shortener.accounts.settings import Permission
from shortener.errors import ApiError, ErrorCode
from shortener.plurals import counted
from shortener.web.call_headers import find_header
from shortener.web.new_credentials import find_new_credential

if TYPE_CHECKING:
    from shortener.container import Service


class Caller(enum.Enum):
    """The kind of credential that an endpoint requires."""

    ANYONE = "anyone"
    API_KEY = "an API key"
    TRACKER = "a tracker token"
    POSTBACK_KEY = "a postback key in the path"


async def authenticate(caller: Caller, permission: Permission | None, service: Service, request: Request) -> Principal | None:
    """Return the owner of the credential of a request. Return None if `caller` is ANYONE: no credential is required then. Raise
    ApiError UNAUTHORIZED, FORBIDDEN or RATE_LIMITED."""
    if caller is Caller.ANYONE:
        return None
    principal = _find_principal(caller, service, request)
    if principal is None:
        # The limit of wrong credentials (new_credentials.py) does not count requests without a credential.
        if _has_credential(caller, request):
            find = partial(_find_principal, caller, service, request)
            principal = await find_new_credential(service, request, find)
        if principal is None:
            raise ApiError(ErrorCode.UNAUTHORIZED, _reason_of_rejection(caller, request))
    if permission and permission not in principal.permissions:
        raise ApiError(ErrorCode.FORBIDDEN, f"This API key does not have the permission {permission}.")
    if principal.rate_limit is not None:
        wait = service.rate_limits.api_keys.take(principal.key_id, principal.rate_limit)
        if wait:
            reason = f"This API key may send {counted(principal.rate_limit, 'request')} per minute."
            raise ApiError(ErrorCode.RATE_LIMITED, reason, retry_after=wait)
    return principal


def _find_principal(caller: Caller, service: Service, request: Request) -> Principal | None:
    """Return the owner of the credential of a request, or None if the request has no valid credential of this kind."""
    if caller is Caller.API_KEY:
        return _find_by_api_key(service, request)
    if caller is Caller.POSTBACK_KEY:
        return service.directory.find_by_postback_key(request.path_params["postback_key"].strip(), service.clock())
    token = _tracker_token(request)
    return service.directory.find_by_tracker_token(token, service.clock()) if token else None


def _has_credential(caller: Caller, request: Request) -> bool:
    """Return whether a request has a credential of this kind, valid or not."""
    if caller is Caller.API_KEY:
        return "x-api-key" in request.headers or "authorization" in request.headers
    return caller is Caller.POSTBACK_KEY or bool(_tracker_token(request))


def _tracker_token(request: Request) -> str:
    return (find_header(request, b"x-api-token") or "").strip()


#: The kind of a credential, by the first three characters of its text.
_KINDS = {"sk_": "an API key", "tt_": "a tracker token", "pk_": "a postback key"}


def _reason_of_rejection(caller: Caller, request: Request) -> str:
    """Return the description of the error for a missing or rejected credential."""
    sent = _credentials_by_place(request)
    if caller is Caller.POSTBACK_KEY:
        kind = _KINDS.get(request.path_params["postback_key"].strip()[:3])
        if kind not in (None, "a postback key"):
            return f"This call requires a postback key (pk_...) in its path. The path has {kind}."
        return "The postback key in the path is unknown, revoked or expired."
    if caller is Caller.TRACKER:
        if (other := _misplaced(sent, "a tracker token", ("X-Api-Token",))) is not None:
            return f"This call requires a tracker token (tt_...) in the X-Api-Token header. The request has {other}."
        return "The tracker token in the X-Api-Token header is missing, unknown or expired."
    if (other := _misplaced(sent, "an API key", ("X-API-Key", "Authorization"))) is not None:
        return f"This call requires an API key (sk_...) in the X-API-Key header. The request has {other}."
    if _has_credential(caller, request):
        name = "X-API-Key" if "x-api-key" in request.headers else "Authorization"
        return f"The API key in the {name} header is unknown, revoked or expired."
    return "The request has no API key. Send it in the X-API-Key header."


def _credentials_by_place(request: Request) -> dict[str, str]:
    """Return the credentials of a request by the name of the header that contains them."""
    found = {name: (find_header(request, name.lower().encode()) or "").strip() for name in ("X-API-Key", "X-Api-Token")}
    found["Authorization"] = _split_authorization(request)[1]
    return {name: credential for name, credential in found.items() if credential}


def _misplaced(sent: Mapping[str, str], required: str, accepted: Sequence[str]) -> str | None:
    """Return a text that says which wrong credential a request contains, such as "a tracker token in the X-API-Key header". A
    credential is wrong if it is not of the kind `required`, or if its header is not in `accepted`. Return None in two cases: the
    credential in an accepted header is of the required kind or of an unknown kind, or no header contains a credential of a known
    kind."""
    # A credential in X-API-Key counts as an API key whatever its first characters are: INITIAL_API_KEY may begin with any
    # characters.
    kinds = {name: _KINDS.get(credential[:3], "an API key" if name == "X-API-Key" else "") for name, credential in sent.items()}
    if any(kinds.get(name) in (required, "") for name in accepted):
        return None
    return next((f"{kind} in the {name} header" for name, kind in kinds.items() if kind), None)


def _find_by_api_key(service: Service, request: Request) -> Principal | None:
    """Return the owner of the API key in any of the accepted headers, or None if no header contains a valid key.

    23 Telecom uses X-API-Key, Syniverse uses Bearer, and Infobip uses App and Basic. The user name of Basic is the id of
    the application.
    """
    key = find_header(request, b"x-api-key")
    if key is not None:
        return service.directory.find_by_api_key(key.strip())
    scheme, credential, user = _split_authorization(request)
    principal = service.directory.find_by_api_key(credential) if scheme in ("bearer", "app", "basic") else None
    if principal is not None and scheme == "basic" and user != str(principal.application.id):
        return None
    return principal


def _split_authorization(request: Request) -> tuple[str, str, str]:
    """Return the scheme of the header Authorization in lower case, its credential, and the user name of Basic. A credential without
    a scheme has the scheme "". All three are empty if the header is absent or cannot be decoded."""
    scheme, _, credential = request.headers.get("authorization", "").strip().partition(" ")
    if not credential:
        return "", scheme, ""
    if scheme.lower() != "basic":
        return scheme.lower(), credential.strip(), ""
    try:
        user, _, password = base64.b64decode(credential.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return "", "", ""
    return "basic", password, user
