"""Templates of tracker URLs: checked once when the tracker is saved, filled in for every delivery.

A template is an absolute http(s) URL that may hold `{name}` in its path and query, for the names in `PLACEHOLDERS` and no
others. `parse_template` refuses with `TemplateError` what a tracker would otherwise receive as literal text: unknown names, and
known names in the macro style of another system (`{{phone}}`, `[phone]`, `%PHONE%`, `(phone)`, `{Phone}`, ...). Where the host
leads is judged by the address guard; only addresses in disguise (`127.1`) are refused here, as no client can call them.

`Template.expand` percent-encodes each value by RFC 3986 (only letters, digits and `-._~` stay) and fills in once: a value that
contains `{phone}` stays text. So the scheme, host, port, path and parameters of the URL are the same whatever the values are.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import quote

from shortener.errors import ErrorCode
from shortener.urls import NumericHostError, UrlError, parse_authority

#: 23 Telecom's ten.
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
    "campaign",
    "url",
    "short_url",
    "label",
    "country",
    "phone_sha256",
)
PLACEHOLDERS = TELECOM_PLACEHOLDERS + OWN_PLACEHOLDERS
MAX_URL_LENGTH = 2048

#: Words of a delivery receipt (SMPP, as 23 Telecom sends them) for states; READ and CLICKTHRU have none and keep their names.
STATUS_WORDS = {
    "CREATED": "ACCEPTD",
    "SENT": "ENROUTE",
    "DELIVERED": "DELIVRD",
    "FAILED": "UNDELIV",
    "EXPIRED": "EXPIRED",
}

_KNOWN = frozenset(PLACEHOLDERS)
_BARE = {name.replace("_", ""): name for name in PLACEHOLDERS}
# What other systems call the same things; only ever used in a hint.
_ELSEWHERE = {
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

_WORD = r"[A-Za-z][A-Za-z0-9_.-]{0,40}"
_GOOD = re.compile(r"\{(" + "|".join(sorted(PLACEHOLDERS, key=len, reverse=True)) + r")\}")
# Braces around a word, with what macro styles add to it: ${x}, #{x}, {{x}}, { x }, {_x}, {!x}, {x:raw}, {x|raw};
# then the same with the braces percent-encoded, once or twice.
_INSIDE = rf"(?:\s|%20)*[_!$]?({_WORD})(?:[:|][^{{}}&]*)?(?:\s|%20)*"
_BRACED = re.compile(rf"[$#]?\{{{{1,3}}{_INSIDE}\}}{{1,3}}")
_ESCAPED = re.compile(rf"(?:%(?:25)?7B){{1,3}}{_INSIDE}(?:%(?:25)?7D){{1,3}}", re.IGNORECASE)
# The same word in other clothes: <x>, __x__, %x%, %%x%%. "%ca...%" is left alone when it can be read as escapes.
_DRESSED = re.compile(
    rf"<({_WORD})>|(?<!\w)__([A-Za-z0-9]+(?:_[A-Za-z0-9]+)*)__(?!\w)|%%({_WORD})%%"
    r"|%(?![0-9A-Fa-f]{2})([A-Za-z][\w-]*)%|%([A-Za-z][\w-]*)%(?![0-9A-Fa-f]{2})"
)
# (x) and [x], except where a name stands glued before it: count(value), Users(phone) and user[phone]= are honest.
_PARENTHESIS = re.compile(rf"(?<![\w)\]])\(({_WORD})\)")
_BRACKET = re.compile(rf"(\[|%5B)\[?({_WORD})\]?(\]|%5D)", re.IGNORECASE)
_GLUED = re.compile(r"(?:[\w)\]-]|%5D)\Z", re.IGNORECASE)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_AUTHORITY = re.compile(r"(https?)://([^/?#]*)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# RFC 3986's own characters, and the brackets that every client sends as they are.
_KEEP = "%:/?#[]@!$&'()*+,;=-._~"


class TemplateError(Exception):
    """The URL cannot be a tracker's; `position` counts characters of the URL as it was given."""

    def __init__(self, code: ErrorCode, reason: str, position: int) -> None:
        self.code = code
        self.reason = reason
        self.position = position
        super().__init__(f"{reason} (at {position})")


@dataclass(frozen=True, slots=True)
class Template:
    """A checked tracker URL. `host` is ASCII and lower case (punycode; IPv6 without brackets), `port` is always set.

    `placeholders` are the names that it holds, each once, in order of appearance.
    """

    scheme: str
    host: str
    port: int
    placeholders: tuple[str, ...]
    _texts: tuple[str, ...]  # one more than _names: text, name, text, name, ..., text
    _names: tuple[str, ...]

    def expand(self, values: Mapping[str, str]) -> str:
        """The URL to call, all ASCII. A placeholder without a value becomes the empty string."""
        texts = self._texts
        if not self._names:
            return texts[0]
        parts = [texts[0]]
        for index, name in enumerate(self._names, 1):
            value = values.get(name)
            if value:
                parts.append(quote(value, safe="", errors="replace"))
            parts.append(texts[index])
        return "".join(parts)


def parse_template(url: str) -> Template:
    """Check a tracker's URL and cut it into text and placeholders. Raises `TemplateError`."""
    authority = _AUTHORITY.match(url)
    if authority is None:
        start = re.match(r"[^/?#]*", url)
        if start is not None and "{" in start[0]:
            _invalid("a placeholder cannot stand in the scheme, host or port", url.index("{"))
        _invalid("wants an absolute URL that begins with http:// or https://", 0)
    if len(url) > MAX_URL_LENGTH:
        _invalid(f"is longer than {MAX_URL_LENGTH} characters", MAX_URL_LENGTH)
    if control := _CONTROL.search(url):
        _invalid("holds a control character", control.start())
    if "\\" in url:
        _invalid("holds a backslash, which clients read in different ways; write / or %5C", url.index("\\"))

    scheme = authority[1].lower()
    host, port = _host_and_port(authority[2], authority.start(2), 443 if scheme == "https" else 80)
    texts, names = _cut(url, authority.end())

    at = f"[{host}]" if ":" in host else host
    origin = f"{scheme}://{at}" if port == (443 if scheme == "https" else 80) else f"{scheme}://{at}:{port}"
    if not texts[0].startswith("/"):
        origin += "/"
    texts[0] = origin + texts[0]
    return Template(scheme, host, port, tuple(dict.fromkeys(names)), tuple(texts), tuple(names))


def placeholder_values(facts: Mapping[str, Any]) -> dict[str, str]:
    """The text of every placeholder, from the facts of an event; what is not known is the empty string."""
    phone = _text(facts.get("to_address"))
    values = {name: _text(facts.get(name)) for name in OWN_PLACEHOLDERS}
    values["event"] = _text(facts.get("topic"))
    values["message_id"] = _text(facts.get("message_id"))
    values["phone"] = values["recipient"] = phone
    values["sender_id"] = sender_shown(facts)
    values["cost"] = _text(facts.get("mt_price"))
    values["status"] = status_word(facts)
    values["status_code"] = _text(facts.get("reason_code"))
    values["num_parts"] = _text(facts.get("fragments_count"))
    values["timestamp"] = _text(facts.get("timestamp"))
    values["telecom_message_id"] = _text(facts.get("telecom_message_id"))
    return values


def sender_shown(facts: Mapping[str, Any]) -> str:
    """23 Telecom's sender id is what the handset shows: the alias, else the number, else Syniverse's id of the sender."""
    return _text(facts.get("sender_id_alias") or facts.get("from_address") or facts.get("sender_id_id"))


def status_word(facts: Mapping[str, Any]) -> str:
    """`{status}`: a conversion's own status, else the word of the pipeline's delivery report, else the state as a receipt word."""
    if facts.get("topic") == "conversion" and (status := facts.get("conversion_status")):
        return _text(status)
    state = _text(facts.get("new_state"))
    return _text(facts.get("report_status")) or STATUS_WORDS.get(state, state)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _invalid(reason: str, position: int) -> NoReturn:
    raise TemplateError(ErrorCode.INVALID_TRACKER_URL, reason, position)


def _host_and_port(authority: str, offset: int, default_port: int) -> tuple[str, int]:
    """The host, ASCII and lower case, and the port of an authority that begins at `offset` in the URL."""
    if (brace := re.search(r"[{}]|%7[BD]", authority, re.IGNORECASE)) is not None:
        _invalid("a placeholder cannot stand in the scheme, host or port", offset + brace.start())
    try:
        host, port = parse_authority(authority, offset, allow_trailing_dot=True)
    except NumericHostError as error:
        if _is_disguised_address(error.host):
            reason = "has an IPv4 address in an unusual form as its host; write a.b.c.d"
            raise TemplateError(ErrorCode.FORBIDDEN_TARGET, reason, offset) from None
        _invalid(error.reason, error.position)
    except UrlError as error:
        _invalid(error.reason, error.position)
    if any(label.startswith("-") or label.endswith("-") for label in host.split(".")):
        _invalid("has a hyphen at an edge of a part of its host", offset)
    return ipaddress.IPv6Address(host).compressed if ":" in host else host, port or default_port


def _is_disguised_address(host: str) -> bool:
    """Whether a resolver reads this host as an IPv4 address, such as 127.1, 2130706433 and 0x7f.1."""
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True


def _cut(url: str, start: int) -> tuple[list[str], list[str]]:
    """Text and names of the path and query, which begin at `start`. Text comes back percent-encoded where a URL wants it."""
    _refuse_other_styles(url, start)
    texts, names, at = [], [], start
    for found in _GOOD.finditer(url, start):
        texts.append(_encoded(url, at, found.start()))
        names.append(found[1])
        at = found.end()
    texts.append(_encoded(url, at, len(url)))
    return texts, names


def _encoded(url: str, start: int, end: int) -> str:
    text = url[start:end]
    for symbol, reason in (
        ("{", "a lone brace; write %7B for the character, or one of the known placeholders"),
        ("}", "a lone brace; write %7D for the character, or one of the known placeholders"),
    ):
        if (at := text.find(symbol)) >= 0:
            raise TemplateError(ErrorCode.UNKNOWN_PLACEHOLDER, reason, start + at)
    if (at := text.find("#")) >= 0:
        _invalid("holds a fragment, which is never sent; remove it, or write %23", start + at)
    if space := re.search(r"\s", text):
        _invalid("holds a blank; write %20", start + space.start())
    if escape := _BAD_ESCAPE.search(text):
        # Else a value that begins with digits would become part of the escape.
        _invalid("holds a % that is not followed by two hexadecimal digits; write %25", start + escape.start())
    try:
        return quote(text, safe=_KEEP)
    except UnicodeEncodeError as error:
        _invalid("holds a character that cannot be sent", start + error.start)


def _refuse_other_styles(url: str, start: int) -> None:
    """Raise for a placeholder that is unknown, or known but written as another system writes it."""
    query = url.find("?", start)
    for found in _BRACED.finditer(url, start):
        if not _GOOD.fullmatch(found[0]):
            _unknown(found[0], _known(found[1]) or _guess(found[1]), found.start())
    for found in _ESCAPED.finditer(url, start):
        if name := _known(found[1]):
            _unknown(found[0], name, found.start())
    for found in _DRESSED.finditer(url, start):
        if name := _known(next(group for group in found.groups() if group is not None)):
            _unknown(found[0], name, found.start())
    for found in _PARENTHESIS.finditer(url, start):
        if name := _known(found[1]):
            _unknown(found[0], name, found.start())
    for found in _BRACKET.finditer(url, start):
        if name := _known(found[2]):
            before = url[start : found.start()]
            is_key = 0 <= query < found.start() and "=" not in re.split("[?&;]", before)[-1]
            if not (is_key and _GLUED.search(before)):
                _unknown(found[0], name, found.start())


def _known(word: str) -> str | None:
    """The placeholder that `word` is, written in any case, with or without separators."""
    return _BARE.get(re.sub(r"[_.-]", "", word).lower())


def _guess(word: str) -> str | None:
    bare = re.sub(r"[_.-]", "", word).lower()
    if bare in _ELSEWHERE:
        return _ELSEWHERE[bare]
    near = difflib.get_close_matches(bare, _BARE, n=1, cutoff=0.75)
    return _BARE[near[0]] if near else None


def _unknown(text: str, name: str | None, position: int) -> NoReturn:
    hint = f"write {{{name}}}" if name else f"known are {' '.join(f'{{{known}}}' for known in PLACEHOLDERS)}"
    raise TemplateError(ErrorCode.UNKNOWN_PLACEHOLDER, f"{text} is not a placeholder; {hint}", position)
