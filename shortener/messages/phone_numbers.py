"""Numbers: who a message goes to and who it comes from.

A recipient is an E.164 number by its form; whether a subscriber has it is for the carrier to say. Its country is that of
phonenumbers' tables, asked as seldom as possible. Fails with `PhoneNumberError` for a recipient; a sender is only judged.
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

# Codes that belong to no country (satellite phones, international freephone) have the region "001" there.
_REGIONS = {str(code): regions for code, regions in phonenumbers.COUNTRY_CODE_TO_REGION_CODE.items() if regions != ("001",)}


class PhoneNumberError(Exception):
    """A recipient is not an E.164 number."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class PhoneNumber:
    """`country` is the ISO 3166 code of two letters, or None for a number of no country or in no plan."""

    e164: str
    country: str | None


def parse_number(to: str) -> PhoneNumber:
    """Raises NumberError unless `to` is `+`, a digit from 1 to 9 and 6 to 14 digits more, without spaces or signs."""
    if _E164.fullmatch(to) is None:
        raise PhoneNumberError(f"{to[:32]!r} is not an E.164 number: + and 7 to 15 digits, as in +14155550100")
    return PhoneNumber(to, _country(to))


def check_sender(sender: str) -> str | None:
    """Why `sender` is none, or None if it is: 3 to 15 digits, with or without +; 3 to 11 ASCII letters and digits, a letter first
    (23 Telecom); or `channel:ID` or `sender_id:ID` (Syniverse)."""
    if _SENDER_NUMBER.fullmatch(sender) or _SENDER_NAME.fullmatch(sender) or _SENDER_REFERENCE.fullmatch(sender):
        return None
    return "is neither a number of 3 to 15 digits nor 3 to 11 letters and digits beginning with a letter"


def _country(number: str) -> str | None:
    for end in (2, 3, 4):
        regions = _REGIONS.get(number[1:end])
        if regions is not None:
            break
    else:
        return None
    if len(regions) == 1:
        return str(regions[0])
    # Countries that share a code (+1, +7, +44, ...) divide the plan by blocks of 10,000 subscribers or more, as far as their
    # numbers have ten digits. A leading 0 may be a trunk prefix that somebody left in, and makes another number.
    if len(number) - end == 10 and number[end] != "0":
        return _country_of_block(number[:-4])
    return _ask(number)


@lru_cache(maxsize=1 << 16)
def _country_of_block(block: str) -> str | None:
    return _ask(block + "0000")


def _ask(number: str) -> str | None:
    """7 to 20 microseconds, where a look-up in the table or the cache takes less than one."""
    country: str | None = phonenumbers.region_code_for_number(phonenumbers.parse(number))
    return country
