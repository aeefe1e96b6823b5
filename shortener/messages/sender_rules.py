"""This module checks senders. An unusual form of a sender id causes a warning and is never rejected.

It also contains a table of the rules of countries for names as senders (alphanumeric sender ids). Networks replace or block
a name if the country does not permit it, often without a delivery report. The table is a summary of public lists; a carrier can
have further rules. Sources: the list of countries for alphanumeric sender ids of Twilio (2026), the SMS Sender ID Registry of
Singapore (SSIR), and the commercial communications rules of India (TRAI, TCCCPR 2018).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_SENDER_NUMBER = re.compile(r"\+?[0-9]{3,15}")
_SENDER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{2,10}")
_SENDER_REFERENCE = re.compile(r"(?:channel|sender_id):[A-Za-z0-9_-]{1,64}")

#: Countries whose networks do not deliver names as senders. They block the message, or replace the name by a number.
NO_NAMES = frozenset(
    {
        *("AR", "BE", "BR", "CA", "CL", "CN", "CO", "CR", "DO", "EC", "GT", "HN", "KR", "MX", "MY", "NI", "PA", "PR", "PY", "SV"),
        *("TW", "US", "UY", "VE"),
    }
)
#: Countries whose networks deliver only registered names as senders.
REGISTERED_NAMES = frozenset(
    {
        *("AE", "BD", "BH", "BY", "EG", "ID", "IN", "JO", "KE", "KW", "KZ", "LK", "NG", "OM", "PH", "QA", "RU", "SA", "SG", "TH"),
        *("TR", "TZ", "UG", "VN"),
    }
)
#: Countries that require a special form of a name: a pattern for the form, and its description.
FORMS: Mapping[str, tuple[re.Pattern[str], str]] = {
    "IN": (re.compile(r"[A-Za-z0-9]{6}"), "exactly 6 letters or digits"),
}
_REFERENCE = re.compile(r"(?:channel|sender_id):")


def visible_sender(from_address: str, alias: str) -> str:
    """Return the sender that recipients see: `from`, or the alias if `from` is absent or is a reference such as `sender_id:ID`."""
    return alias if not from_address or _REFERENCE.match(from_address) else from_address


def check_sender(sender: str) -> str | None:
    """Return the reason why carriers may reject a sender id, or None if its form is usual.

    Usual forms: 3 to 15 digits, with or without `+`; 3 to 11 ASCII letters and digits, starting with a letter (23 Telecom);
    `channel:ID` or `sender_id:ID` (Syniverse)."""
    if _SENDER_NUMBER.fullmatch(sender) or _SENDER_NAME.fullmatch(sender) or _SENDER_REFERENCE.fullmatch(sender):
        return None
    return "is neither a number of 3 to 15 digits nor 3 to 11 letters and digits that start with a letter"


def country_problem(sender: str, country: str | None) -> str | None:
    """Return the reason why networks of a country (ISO 3166 code) do not deliver a sender, or None.

    Also return None for a sender with an unusual form, because `check_sender` reports it."""
    if not sender or country is None or _REFERENCE.match(sender) or sender.lstrip("+").isdigit() or check_sender(sender):
        return None
    if country in NO_NAMES:
        return f"is a name, but networks in {country} deliver only numbers as senders"
    form = FORMS.get(country)
    if form is not None and not form[0].fullmatch(sender):
        return f"must have {form[1]} in {country}"
    if country in REGISTERED_NAMES:
        return f"must be registered in {country} before networks deliver it"
    return None
