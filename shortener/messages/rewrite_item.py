"""The input of a rewrite: one message of a request, and the settings of the installation that are needed to check it."""
# Tested by tests/messages/test_plan.py

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Protocol

from shortener.accounts.link_targets import TargetHosts
from shortener.errors import Detail, ErrorCode
from shortener.messages.spans import TrackMode
from shortener.model import record


@record
class RewriteItem:
    """One message of a rewrite request, for one recipient or several.

    `message_ids` contains one id for each recipient, or None for an id that the service generates. If `skip_invalid` is true, a
    recipient that is not valid is left out, and the request is not rejected. `field_path(field, recipient)` returns the path of a
    field in the caller's request, for errors; `recipient` is the index of a recipient, or None.

    `invalid` contains fields that the caller has found to be invalid (INVALID_REQUEST), each with the index of its recipient, or
    with None for a field that concerns all recipients. An item with such a field is not checked further."""

    to: tuple[str, ...]
    body: str
    message_ids: tuple[str | None, ...] | None = None
    field_path: Callable[[str, int | None], str] = lambda name, recipient: name
    track: TrackMode | None = None  # None: the default track mode of the application
    from_address: str = ""
    sender_id_id: str = ""
    sender_id_alias: str = ""
    request_id: str = ""
    external_request_id: str = ""
    campaign: str = ""
    source: Literal["api", "campaign"] = "api"
    mt_price: Decimal | None = None
    expires_in: int | None = None  # the lifetime of the links in seconds
    expires_at: datetime | None = None
    fallback_url: str | None = None
    callback_url: str | None = None
    metadata: dict[str, Any] | None = None
    domain: str = ""  # the host of an own domain of the application; "": its default domain
    opt_out: tuple[str, ...] = ()  # destinations or labels of opt-out links, by which a recipient refuses further messages
    skip_invalid: bool = False
    skipped_codes: frozenset[ErrorCode] = frozenset()  # problems that leave a recipient out even if `skip_invalid` is false
    gateway: str | None = None  # None: do not send. "": the gateway of the application. Otherwise: the name of a gateway.
    invalid: tuple[tuple[int | None, Detail], ...] = ()
    tracking: tuple[str, str] = ("", "")  # track and type (Infobip); messages with the same values share a conversion process

    @property
    def places(self) -> range:
        """The indexes of the recipients. The response has one entry for each index. An item without recipients has the index 0 for
        the entry with its error."""
        return range(max(len(self.to), 1))

    def skips(self, code: ErrorCode) -> bool:
        """Return whether a problem with this code leaves the recipient out. Otherwise the problem rejects the request."""
        return self.skip_invalid or code in self.skipped_codes


@record
class RewriteLimits:
    """Limits from the settings of the installation."""

    max_recipients: int  # the maximum number of recipients per request
    link_ttl: timedelta  # the default lifetime of links
    code_length: int  # the number of characters of a code


class LinkHosts(TargetHosts, Protocol):
    """The hosts of the installation, and the hosts that destinations of links must not have."""

    def callback_rejection(self, scheme: str, host: str) -> str | None:
        """Return why no callback may be sent to a host (without port); None if the host is permitted. Make no DNS look-up."""
        ...

    @property
    def version(self) -> str:
        """A text that changes when the hosts of the installation or the blocked hosts change."""
        ...

    def base_url(self, domain_id: int) -> str:
        """Return scheme, host and port of the short links on a domain. The domain id 0 means BASE_URL."""
        ...

    @property
    def shared_host(self) -> str:
        """The host of BASE_URL, with the port unless it is the default port of the scheme."""
        ...

    @property
    def shared_path(self) -> str:
        """The path of BASE_URL, which precedes the code in short links; "" if BASE_URL has no path."""
        ...
