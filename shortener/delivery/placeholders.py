"""This module checks tracker URLs that contain placeholders, and replaces the placeholders by the values of an event.

The service checks the URL when a tracker is saved and replaces the placeholders for every delivery. A URL with placeholders is
called a template. It is an absolute http or https URL. Its path and query may contain `{name}` for the names in `PLACEHOLDERS`.
`parse_template` raises `TemplateError` for unknown names, and for known names in the syntax of another system (`{{phone}}`,
`[phone]`, `%PHONE%`, `(phone)`, `{Phone}`, ...), because the tracker would receive them as literal text. It also rejects IP
addresses in unusual notation (`127.1`), because clients interpret them differently. All other checks of the host are made by the
address guard (guard.py).

The value NAME of the message's metadata replaces `{metadata.NAME}`. NAME contains letters, digits and `_.-`, and is case-sensitive.

`Template.expand` percent-encodes each value by RFC 3986 (only letters, digits and `-._~` stay unchanged). It does not replace
placeholders inside values: a value that contains `{phone}` stays text. If values make a path segment equal to `.` or `..`, the dots
are encoded. Therefore values cannot change the scheme, host or port of the URL, and cannot add path segments or parameters.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import quote

from shortener.delivery.dot_segments import encode_dot_segments
from shortener.errors import ErrorCode
from shortener.macros import find_macros
from shortener.model import record
from shortener.times import parse_iso, to_utc
from shortener.urls import NumericHostError, UrlError, parse_authority

#: The names of the ten placeholders that 23 Telecom supports.
TELECOM_PLACEHOLDERS = (
    "message_id",
    "phone",
    "recipient",
    "sender_id",
    "cost",
    "status",
    "status_code",
    "num_parts",
    "timestamp",
    "telecom_message_id",
)
OWN_PLACEHOLDERS = (
    "event_id",
    "event",
    "click_id",
    "conversion_id",
    "action",
    "value",
    "currency",
    "transaction_id",
    "disposition",
    "revision",
    "campaign",
    "url",
    "short_url",
    "label",
    "country",
    "phone_sha256",
    "message_request_id",
    "external_message_request_id",
    "timestamp_unix",
)
#: The names of placeholders for the metadata of a message begin with this prefix: {metadata.NAME}.
METADATA = "metadata."
PLACEHOLDERS = TELECOM_PLACEHOLDERS + OWN_PLACEHOLDERS
MAX_URL_LENGTH = 2048

#: The words for message states in SMPP delivery receipts. 23 Telecom sends these words. READ and CLICKTHRU are sent unchanged,
#: because SMPP has no words for them.
STATUS_WORDS = {
    "CREATED": "ACCEPTD",
    "SENT": "ENROUTE",
    "DELIVERED": "DELIVRD",
    "FAILED": "UNDELIV",
    "EXPIRED": "EXPIRED",
}

#: The placeholders whose value is a fact with another name.
_FACT_OF = {
    "event": "topic",
    "phone": "to_address",
    "recipient": "to_address",
    "cost": "mt_price",
    "status_code": "reason_code",
    "num_parts": "fragments_count",
}

_WITHOUT_SEPARATORS = {name.replace("_", ""): name for name in PLACEHOLDERS}
# Other systems use these names for the same values. The service uses them only for hints in error texts.
_SYNONYMS = {
    "msisdn": "phone",
    "mobile": "phone",
    "to": "phone",
    "toaddress": "phone",
    "number": "phone",
    "msgid": "message_id",
    "clickid": "click_id",
    "subid": "click_id",
    "cid": "click_id",
    "externalid": "click_id",
    "from": "sender_id",
    "sender": "sender_id",
    "price": "cost",
    "mtprice": "cost",
    "errorcode": "status_code",
    "reasoncode": "status_code",
    "parts": "num_parts",
    "segments": "num_parts",
    "fragmentscount": "num_parts",
    "time": "timestamp",
    "date": "timestamp",
    "eventname": "event",
    "eventtype": "event",
    "goal": "action",
    "payout": "value",
    "amount": "value",
    "revenue": "value",
    "sum": "value",
    "txid": "transaction_id",
    "txnid": "transaction_id",
    "orderid": "transaction_id",
    "campaignid": "campaign",
    "campaignname": "campaign",
    "countrycode": "country",
    "geo": "country",
    "link": "url",
    "shortlink": "short_url",
}

_NAMES = [*sorted(PLACEHOLDERS, key=len, reverse=True), r"metadata\.[A-Za-z0-9_.-]{1,64}"]
_PLACEHOLDER = re.compile(r"\{(" + "|".join(_NAMES) + r")\}")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_AUTHORITY = re.compile(r"(https?)://([^/?#]*)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# These reserved characters of RFC 3986 are not percent-encoded, because every client sends them unchanged.
_UNQUOTED = "%:/?#[]@!$&'()*+,;=-._~"


class TemplateError(Exception):
    """The error for a tracker URL that is not valid. `position` is the index of the wrong character in the URL, from 0. `further`
    contains the errors of the unknown placeholders that follow in the URL."""

    def __init__(self, code: ErrorCode, reason: str, position: int, further: Sequence[TemplateError] = ()) -> None:
        self.code = code
        self.reason = reason
        self.position = position
        self.further = tuple(further)
        super().__init__(f"{reason} (at {position})")


@record
class Template:
    """A checked tracker URL with placeholders.

    `host` is ASCII in lower case (punycode; IPv6 without brackets). `port` is the port in the URL, or the default port of the
    scheme. `placeholders` contains the name of each placeholder once, in the order of appearance.
    """

    scheme: str
    host: str
    port: int
    placeholders: tuple[str, ...]
    _texts: tuple[str, ...]  # the literal texts around the placeholders; there is one text more than there are names
    _names: tuple[str, ...]

    def expand(self, values: Mapping[str, str]) -> str:
        """Replace the placeholders by the values and return the URL in ASCII. A missing value becomes the empty string."""
        texts = self._texts
        if not self._names:
            return texts[0]
        parts = [texts[0]]
        for index, name in enumerate(self._names, 1):
            value = values.get(name)
            if value:
                is_unchanged = value.isascii() and value.isalnum()  # most values are ids, and `quote` is slow
                parts.append(value if is_unchanged else quote(value, safe="", errors="replace"))
            parts.append(texts[index])
        if "?" in texts[0]:  # all placeholders are in the query, so the path is complete
            return "".join(parts)
        path, separator, query = "".join(parts).partition("?")
        return encode_dot_segments(path, "{}".join(texts).partition("?")[0]) + separator + query


def parse_template(url: str) -> Template:
    """Check the URL of a tracker and split it into literal texts and placeholders. Raise `TemplateError` if it is not valid."""
    authority = _AUTHORITY.match(url)
    if authority is None:
        start = re.match(r"[^/?#]*", url)
        if start is not None and "{" in start[0]:
            _invalid("must not contain a placeholder in the scheme, host or port", url.index("{"))
        _invalid("must be an absolute URL that begins with http:// or https://", 0)
    if len(url) > MAX_URL_LENGTH:
        _invalid(f"must not be longer than {MAX_URL_LENGTH} characters", MAX_URL_LENGTH)
    if control := _CONTROL.search(url):
        _invalid("must not contain a control character", control.start())
    if "\\" in url:
        _invalid("must not contain a backslash; write / or %5C", url.index("\\"))

    scheme = authority[1].lower()
    host, port = _host_and_port(authority[2], authority.start(2), 443 if scheme == "https" else 80)
    texts, names = _split(url, authority.end())

    at = f"[{host}]" if ":" in host else host
    origin = f"{scheme}://{at}" if port == (443 if scheme == "https" else 80) else f"{scheme}://{at}:{port}"
    if not texts[0].startswith("/"):
        origin += "/"
    texts[0] = origin + texts[0]
    return Template(scheme, host, port, tuple(dict.fromkeys(names)), tuple(texts), tuple(names))


def placeholder_values(facts: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, str]:
    """Return the values of placeholders for an event, by placeholder name. An unknown value is the empty string.

    `facts` is the snapshot of the event's data (event_fields.FACTS). `names` are the placeholders whose values are needed. None
    means all placeholders and all metadata of the message."""
    metadata = facts.get("metadata")
    if not isinstance(metadata, Mapping):
        metadata = {}
    if names is None:
        names = (*PLACEHOLDERS, *(METADATA + name for name in metadata))
    return {name: _placeholder_value(facts, name, metadata) for name in names}


def _placeholder_value(facts: Mapping[str, Any], name: str, metadata: Mapping[str, Any]) -> str:
    if name.startswith(METADATA):
        return _text(metadata.get(name.removeprefix(METADATA)))
    match name:
        case "sender_id":
            return displayed_sender(facts)
        case "status":
            return status_word(facts)
        case "timestamp_unix":
            return _epoch_seconds(facts.get("timestamp"))
    return _text(facts.get(_FACT_OF.get(name, name)))


def displayed_sender(facts: Mapping[str, Any]) -> str:
    """Return the sender id in the form that 23 Telecom uses: the `from` of the message. If `from` is absent or only refers to a
    sender (`channel:7`), return the alias of the sender. If there is no alias, return the reference or the id of the sender."""
    sender = _text(facts.get("from_address"))
    is_reference = sender.startswith(("channel:", "sender_id:"))
    return (not is_reference and sender) or _text(facts.get("sender_id_alias") or sender or facts.get("sender_id_id"))


def kind_of_event(facts: Mapping[str, Any]) -> str:
    """Return the name of the event that the facts describe. For a test delivery, return the name of the imitated event
    (`sample_of`)."""
    return _text(facts.get("sample_of") or facts.get("topic"))


def status_word(facts: Mapping[str, Any]) -> str:
    """Return the value of the placeholder `{status}`.

    For a state event, the value is the new state of the message. For other events, the value is the first of these that is known:
    the status of the conversion, the status in the delivery report, the message state as a word of SMPP delivery receipts. A
    conversion without a status gets the status of the delivery report, because 23 Telecom's postback of a conversion contains the
    carrier's status word."""
    kind = kind_of_event(facts)
    state = _text(facts.get("new_state"))
    if kind == "state":
        return state
    if kind == "conversion" and (status := facts.get("conversion_status")):
        return _text(status)
    return _text(facts.get("report_status")) or STATUS_WORDS.get(state, state)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _epoch_seconds(timestamp: Any) -> str:
    try:
        return str(int(to_utc(parse_iso(timestamp)).timestamp()))
    except (AttributeError, OverflowError, ValueError):
        return ""


def _invalid(reason: str, position: int) -> NoReturn:
    raise TemplateError(ErrorCode.INVALID_TRACKER_URL, reason, position)


def _host_and_port(authority: str, offset: int, default_port: int) -> tuple[str, int]:
    """Return the host (ASCII, lower case) and the port in the authority of a URL, such as `example.com:8443`.

    `offset` is the index of the authority in the URL, for error positions."""
    if (brace := re.search(r"[{}]|%7[BD]", authority, re.IGNORECASE)) is not None:
        _invalid("must not contain a placeholder in the scheme, host or port", offset + brace.start())
    try:
        host, port = parse_authority(authority, offset)
    except NumericHostError as error:
        if _is_disguised_address(error.host):
            reason = "must not have an IPv4 address in an unusual notation as its host; write a.b.c.d"
            raise TemplateError(ErrorCode.FORBIDDEN_TARGET, reason, offset) from None
        _invalid(error.reason, error.position)
    except UrlError as error:
        _invalid(error.reason, error.position)
    if any(label.startswith("-") or label.endswith("-") for label in host.split(".")):
        _invalid("must not have a hyphen at the start or end of a part of its host", offset)
    return ipaddress.IPv6Address(host).compressed if ":" in host else host, port or default_port


def _is_disguised_address(host: str) -> bool:
    """Return whether a resolver interprets this host as an IPv4 address, for example 127.1, 2130706433 or 0x7f.1."""
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True


def _split(url: str, start: int) -> tuple[list[str], list[str]]:
    """Split the path and query of a URL, which start at the index `start`, into literal texts and placeholder names.

    In the texts, percent-encode characters that a URL cannot contain."""
    _reject_other_syntax(url, start)
    texts, names, at = [], [], start
    for found in _PLACEHOLDER.finditer(url, start):
        texts.append(_encoded(url, at, found.start()))
        names.append(found[1])
        at = found.end()
    texts.append(_encoded(url, at, len(url)))
    return texts, names


def _encoded(url: str, start: int, end: int) -> str:
    text = url[start:end]
    for symbol, reason in (
        ("{", "must not contain a single {; write %7B for the character, or a known placeholder"),
        ("}", "must not contain a single }; write %7D for the character, or a known placeholder"),
    ):
        if (at := text.find(symbol)) >= 0:
            raise TemplateError(ErrorCode.UNKNOWN_PLACEHOLDER, reason, start + at)
    if (at := text.find("#")) >= 0:
        _invalid("must not contain a fragment, which clients never send; remove it, or write %23", start + at)
    if space := re.search(r"\s", text):
        _invalid("must not contain a space; write %20", start + space.start())
    if escape := _BAD_ESCAPE.search(text):
        # If a % without two hexadecimal digits were accepted, the value of the placeholder after it could complete a
        # percent-encoded byte.
        _invalid("must not contain a % without two hexadecimal digits after it; write %25", start + escape.start())
    try:
        return quote(text, safe=_UNQUOTED)
    except UnicodeEncodeError as error:
        _invalid("must not contain a character that cannot be encoded", start + error.start)


def _reject_other_syntax(url: str, start: int) -> None:
    """If the URL contains unknown placeholders, or known placeholders in the syntax of another system, raise one TemplateError for
    all of them."""
    errors = []
    end = start
    for macro in sorted(find_macros(url, start), key=lambda macro: macro.position):
        if macro.position < end:
            continue  # this match is inside the previous match
        if macro.is_braced:
            name = _known(macro.word) or _guess(macro.word)
            is_wrong = not _PLACEHOLDER.fullmatch(macro.text)
        else:
            name = _known(macro.word)
            is_wrong = name is not None
        if is_wrong:
            errors.append(_unknown(macro.text, name, macro.position))
            end = macro.position + len(macro.text)
    if errors:
        first, *further = errors
        raise TemplateError(first.code, first.reason, first.position, further)


def _known(word: str) -> str | None:
    """Return the name of the placeholder that equals `word` if case and separators are ignored, or None."""
    if word.lower().startswith(METADATA) and len(word) > len(METADATA):
        return METADATA + word[len(METADATA) :]
    return _WITHOUT_SEPARATORS.get(re.sub(r"[_.-]", "", word).lower())


def _guess(word: str) -> str | None:
    if word.lower() in ("metadata", "metadata."):
        return f"{METADATA}NAME"
    bare = re.sub(r"[_.-]", "", word).lower()
    if bare in _SYNONYMS:
        return _SYNONYMS[bare]
    import difflib  # imported here, because only errors need it

    near = difflib.get_close_matches(bare, _WITHOUT_SEPARATORS, n=1, cutoff=0.75)
    return _WITHOUT_SEPARATORS[near[0]] if near else None


def _unknown(text: str, name: str | None, position: int) -> TemplateError:
    hint = (
        f"write {{{name}}}"
        if name
        else f"known placeholders: {' '.join(f'{{{known}}}' for known in (*PLACEHOLDERS, 'metadata.NAME'))}"
    )
    return TemplateError(ErrorCode.UNKNOWN_PLACEHOLDER, f"{text} is not a placeholder; {hint}", position)
