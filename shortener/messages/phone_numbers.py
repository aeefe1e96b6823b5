"""Phone numbers of recipients, and sender ids.

Only the form of a recipient's number is checked (E.164). Only the carrier knows whether the number is in use. The country comes
from the tables of the phonenumbers library; a cache avoids most of its slow look-ups. An invalid recipient raises
`PhoneNumberError`. An unusual sender is only reported, never rejected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import phonenumbers

_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_SENDER_NUMBER = re.compile(r"\+?[0-9]{3,15}")
_SENDER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{2,10}")
_SENDER_REFERENCE = re.compile(r"(?:channel|sender_id):[A-Za-z0-9_-]{1,64}")

# phonenumbers uses the region "001" for calling codes of no country (satellite phones, international freephone).
_REGIONS = {str(code): regions for code, regions in phonenumbers.COUNTRY_CODE_TO_REGION_CODE.items() if regions != ("001",)}


class PhoneNumberError(Exception):
    """A recipient is not an E.164 number. `reason` is a text for people."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class PhoneNumber:
    """A valid E.164 number. `country` is an ISO 3166 code of two letters, or None if the number belongs to no country."""

    e164: str
    country: str | None


def parse_number(to: str) -> PhoneNumber:
    """Parse a recipient: `+`, a digit from 1 to 9, and 6 to 14 more digits, without spaces. Raise PhoneNumberError otherwise."""
    if _E164.fullmatch(to) is None:
        raise PhoneNumberError(f"{to[:32]!r} is not an E.164 number: + and 7 to 15 digits, as in +14155550100")
    return PhoneNumber(to, _country(to))


def check_sender(sender: str) -> str | None:
    """Return why carriers may reject a sender, or None if its form is usual.

    Usual forms: 3 to 15 digits, with or without `+`; 3 to 11 ASCII letters and digits, starting with a letter (23 Telecom);
    `channel:ID` or `sender_id:ID` (Syniverse)."""
    if _SENDER_NUMBER.fullmatch(sender) or _SENDER_NAME.fullmatch(sender) or _SENDER_REFERENCE.fullmatch(sender):
        return None
    return "is neither a number of 3 to 15 digits nor 3 to 11 letters and digits that start with a letter"


def _country(number: str) -> str | None:
    for end in (2, 3, 4):
        regions = _REGIONS.get(number[1:end])
        if regions is not None:
            break
    else:
        return None
    if len(regions) == 1:
        return str(regions[0])
    # Countries that share a calling code (+1, +7, +44, ...) divide its ten-digit numbers in blocks of at least 10,000, so the
    # country of a block can be cached. Numbers of another length are looked up one by one. So are numbers with a leading 0: it may
    # be a trunk prefix, and then the library reads another number.
    if len(number) - end == 10 and number[end] != "0":
        return _country_of_block(number[:-4])
    return _look_up_country(number)


@lru_cache(maxsize=1 << 16)
def _country_of_block(block: str) -> str | None:
    return _look_up_country(block + "0000")


def _look_up_country(number: str) -> str | None:
    """Ask phonenumbers. It takes 7 to 20 microseconds; the tables and the cache of this module take less than one."""
    country: str | None = phonenumbers.region_code_for_number(phonenumbers.parse(number))
    return country
