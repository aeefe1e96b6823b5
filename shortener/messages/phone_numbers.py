"""This module checks the phone numbers of recipients. A recipient's number is converted to E.164. Only its notation is checked,
because only the carrier knows whether the number is in use. The country comes from the tables of the phonenumbers library; a cache
avoids most of its slow look-ups. An invalid recipient raises `PhoneNumberError`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import phonenumbers

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import record

MAX_LENGTH = 64  # the maximum number of characters of a recipient's number in a request

_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_DIGITS = re.compile(r"[1-9][0-9]{6,14}")
# Unicode categories of spaces, dashes, brackets and invisible characters, which people and spreadsheets insert into numbers.
_REMOVED_CATEGORIES = frozenset(["Zs", "Zl", "Zp", "Cc", "Cf", "Pd", "Ps", "Pe"])
_MINUS = "\u2212"  # Unicode classifies the minus sign as a symbol, but word processors replace hyphens by it.
# A regular expression for a trunk prefix in brackets, as in +44 (0)20 7946 0000. It is not part of an international number, except
# in Italy (+39).
_TRUNK_PREFIX = re.compile(r"^(\s*(?:\+|00)(?!39)[0-9]{1,3})\s*\(0\)")
_SEARCH_SEPARATORS = str.maketrans("", "", "./")
_INTERNATIONAL_PREFIX = "00"

# The phonenumbers library uses the region "001" for calling codes that belong to no country, for example the codes of satellite
# phones.
_REGIONS = {str(code): regions for code, regions in phonenumbers.COUNTRY_CODE_TO_REGION_CODE.items() if regions != ("001",)}
_WITHOUT_COUNTRY = tuple(f"+{code}" for code in phonenumbers.COUNTRY_CODE_TO_REGION_CODE if str(code) not in _REGIONS)


class PhoneNumberError(Exception):
    """Raised if a recipient is not an E.164 number. `reason` is an explanation for the sender."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@record
class PhoneNumber:
    """A valid E.164 number. `country` is an ISO 3166 code of two letters, or None if the number belongs to no country.

    `warnings` are texts that explain why the number may be wrong."""

    e164: str
    country: str | None
    warnings: tuple[str, ...] = ()


def parse_number(to: str) -> PhoneNumber:
    """Return a recipient's number in the form of E.164: `+`, a digit from 1 to 9, and 6 to 14 more digits.

    Spaces, hyphens, brackets, invisible characters and a leading `00` are removed. Digits without `+` are accepted, with a warning,
    if they are a valid international number. Raise PhoneNumberError if the result is not in the form of E.164."""
    number = to
    warnings: tuple[str, ...] = ()
    if _E164.fullmatch(to) is None:
        number = _normalise(to)
        if _DIGITS.fullmatch(number) and _is_valid(f"+{number}"):
            number = f"+{number}"
            warnings = (f"to {to!r} has no +; it was read as {number}",)
        if _E164.fullmatch(number) is None:
            raise PhoneNumberError(f"{to[:32]!r} is not an E.164 number: + and 7 to 15 digits, as in +14155550100")
    calling_code, country = _country(number)
    if calling_code and not _is_possible_length(calling_code, len(number) - 1):
        warnings += (f"to {number} has a length that no number of its country has; carriers may reject it",)
    elif not calling_code and not number.startswith(_WITHOUT_COUNTRY):
        warnings += (f"to {number} has a calling code that no country has; carriers may reject it",)
    return PhoneNumber(number, country, warnings)


def parse_recipient(to: str, field: str) -> str:
    """Return a recipient's number in the form of E.164, as `parse_number` does. Raise ApiError INVALID_RECIPIENT if it is not
    valid. `field` is the field of the request that contains it."""
    try:
        return parse_number(to).e164
    except PhoneNumberError as error:
        raise ApiError(ErrorCode.INVALID_RECIPIENT, details=[Detail(field, error.reason)]) from None


def parse_searched_number(text: str) -> str:
    """Return a phone number from a search field in the form in which numbers are stored.

    The notations of `parse_number` are accepted. Full stops and slashes are removed too. Any 7 to 15 digits are accepted without
    `+`, because a plus sign that is not percent-encoded in a query arrives as a space. Raise PhoneNumberError if the result is
    not in the form of E.164."""
    number = text.translate(_SEARCH_SEPARATORS)
    try:
        return parse_number(number).e164
    except PhoneNumberError as error:
        try:
            return parse_number(f"+{number}").e164
        except PhoneNumberError:
            raise error from None


def _normalise(to: str) -> str:
    text = _TRUNK_PREFIX.sub(r"\1", to[:MAX_LENGTH]) if len(to) <= MAX_LENGTH else to
    number = "".join(one for one in text if one != _MINUS and unicodedata.category(one) not in _REMOVED_CATEGORIES)
    return f"+{number[2:]}" if number.startswith(_INTERNATIONAL_PREFIX) else number


def _is_valid(number: str) -> bool:
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(number)))
    except phonenumbers.NumberParseException:
        return False


@lru_cache(maxsize=4096)
def _is_possible_length(calling_code: str, digits: int) -> bool:
    """Return whether a number with this calling code may have `digits` digits. Only the length is checked."""
    number = phonenumbers.PhoneNumber(
        country_code=int(calling_code), national_number=int("2".ljust(digits - len(calling_code), "0"))
    )
    reason = phonenumbers.is_possible_number_with_reason(number)
    return bool(reason == phonenumbers.ValidationResult.IS_POSSIBLE)


def _country(number: str) -> tuple[str, str | None]:
    """Return the calling code of a number ("" if it is unknown), and the country of the number or None."""
    for end in (2, 3, 4):
        regions = _REGIONS.get(number[1:end])
        if regions is not None:
            break
    else:
        return "", None
    calling_code = number[1:end]
    if len(regions) == 1:
        return calling_code, str(regions[0])
    # Countries that share a calling code (+1, +7, +44, ...) divide its ten-digit numbers in blocks of at least 10,000, so the
    # country of a block can be cached. Numbers of another length are looked up one by one. Numbers whose national part begins with
    # 0 are also looked up one by one, because the library may remove the 0 as a trunk prefix.
    if len(number) - end == 10 and number[end] != "0":
        return calling_code, _country_of_block(number[:-4])
    return calling_code, _look_up_country(number)


@lru_cache(maxsize=1 << 16)
def _country_of_block(block: str) -> str | None:
    return _look_up_country(block + "0000")


def _look_up_country(number: str) -> str | None:
    """Look up the country of a number in the phonenumbers library. This takes 7 to 20 microseconds, so callers cache the result."""
    country: str | None = phonenumbers.region_code_for_number(phonenumbers.parse(number))
    return country
