"""This module parses amounts of money and currency codes in the notations of affiliate networks.

A network does not repeat a rejected postback, so the parser accepts every amount that has one reasonable meaning. `RULES` lists all
rules with one example each; docs/reference/conversions.md contains the same table. Amounts are exact decimals of at most 18 digits
before and 6 after the point.
"""
# Tested by tests/conversions/test_amounts.py

from __future__ import annotations

import re
import unicodedata
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import NamedTuple

MAX_WHOLE_DIGITS, MAX_FRACTION_DIGITS = 18, 6
_CONTEXT = Context(prec=60, rounding=ROUND_HALF_EVEN)
_STEP = Decimal(1).scaleb(-MAX_FRACTION_DIGITS)
#: If rounding changes an amount by less than this, there is no warning: the difference comes from binary floating point.
_NOISE = Decimal("1e-9")


class Rule(NamedTuple):
    """A rule for amounts: an example input, the amount that the parser returns (None if it rejects the input), and the
    explanation."""

    text: str
    amount: str | None
    meaning: str


RULES: tuple[Rule, ...] = (
    Rule("12.50", "12.50", "A decimal with a point. Trailing zeros are kept."),
    Rule("-3", "-3", "A negative amount, for example a refund. `−3`, `3-` and `(3)` mean the same."),
    Rule("12,50", "12.50", "A comma before one, two, or more than three digits is a decimal point."),
    Rule("1,234.50", "1234.50", "If the amount contains commas and points, the sign that comes last is the decimal point."),
    Rule("1.234,50", "1234.50", "The sign that comes last is the decimal point; this is the notation of most of Europe."),
    Rule("1,234", "1234", "A comma before exactly three digits separates thousands (with a warning)."),
    Rule("0,125", "0.125", "After a single 0, a comma is always a decimal point."),
    Rule("1.234", "1.234", "A single point is always a decimal point."),
    Rule("1,234,567", "1234567", "Several commas or several points separate thousands."),
    Rule("1 234,50", "1234.50", "Spaces and apostrophes may separate thousands."),
    Rule("$12.50", "12.50", "A currency symbol before or after the amount is ignored; €, £, ₽, ₹ and others name the currency."),
    Rule("12.50 EUR", "12.50", "A code of three letters names the currency, unless `currency` names it."),
    Rule(
        "29.990000000000002",
        "29.99",
        "More than 6 digits after the point are rounded to 6 digits (with a warning if the amount changes).",
    ),
    Rule("2.5e2", "250", "An exponent, which some JSON libraries write."),
    Rule("１２.５", "12.5", "Digits of any script."),
    Rule("1,23,4", None, "Thousands separators must be between groups of three digits."),
    Rule("12.50.1", None, "More than one decimal point."),
    Rule("10%", None, "Other characters."),
    Rule("free", None, "Words."),
    Rule("NaN", None, "Values that are not numbers, such as NaN and Infinity."),
    Rule("1234567890123456789", None, "More than 18 digits before the point."),
)

_SYMBOLS = {
    "€": "EUR",
    "£": "GBP",
    "₽": "RUB",
    "₹": "INR",
    "₺": "TRY",
    "₴": "UAH",
    "₸": "KZT",
    "₪": "ILS",
    "₫": "VND",
    "₩": "KRW",
    "₦": "NGN",
    "₱": "PHP",
    "฿": "THB",
    "₿": "BTC",
}
_SYMBOL = re.compile(r"(US|CA|AU|NZ|HK|R)?\$|[¥￥" + "".join(_SYMBOLS) + "]")
_DOLLARS = {"US": "USD", "CA": "CAD", "AU": "AUD", "NZ": "NZD", "HK": "HKD", "R": "BRL"}
_LEADING_CODE = re.compile(r"([A-Za-z]{3})\s*(?=[-+(.0-9])")
_TRAILING_CODE = re.compile(r"(?<=[.0-9)-])\s*([A-Za-z]{3})")
_MINUS = str.maketrans(dict.fromkeys("−–—‐‑﹣－", "-") | {"＋": "+", "．": ".", "，": ",", "٫": ".", "٬": ","})
_EXPONENT = re.compile(r"(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})[eE][+-]?[0-9]{1,3}")
#: A regular expression for an amount without a sign, currency or thousands separators, as most systems write it. No rule of `RULES`
#: changes such an amount.
_PLAIN = re.compile(rf"(?:0|[1-9][0-9]{{0,{MAX_WHOLE_DIGITS - 1}}})(?:\.[0-9]{{1,{MAX_FRACTION_DIGITS}}})?")
_GROUPED = re.compile(r"[0-9]{1,3}(?:([ ',.])[0-9]{3})(?:\1[0-9]{3})*")


class Amount(NamedTuple):
    """A parsed amount. `currency` is the code that the text contains, or None. `warning` says that the parser has guessed or
    rounded; "" without a warning."""

    value: Decimal
    currency: str | None = None
    warning: str = ""


def parse_amount(text: str) -> Amount:
    """Parse an amount by the rules in `RULES`. Raise ValueError with the reason if the text is not an amount."""
    if _PLAIN.fullmatch(text):
        return Amount(Decimal(text))
    number, currency = _split_currency(_ascii(text))
    negative = False
    if number.startswith("(") and number.endswith(")"):
        negative, number = True, number[1:-1].strip()
    if number.endswith("-") and len(number) > 1:
        negative, number = not negative, number[:-1].strip()
    if number[:1] in ("+", "-"):
        negative, number = negative != (number[0] == "-"), number[1:].strip()
    digits, warning = _point(number)
    value = _CONTEXT.create_decimal(digits)
    rounded = value
    if value.as_tuple().exponent < -MAX_FRACTION_DIGITS:  # type: ignore[operator]  # the value is finite
        rounded = _trim(_CONTEXT.quantize(value, _STEP))
        if abs(_CONTEXT.subtract(value, rounded)) >= _NOISE:
            warning = f"was rounded to {format(-rounded if negative and rounded else rounded, 'f')}"
    if rounded.adjusted() >= MAX_WHOLE_DIGITS:
        raise ValueError(f"has more than {MAX_WHOLE_DIGITS} digits before the point")
    rounded = Decimal(format(rounded, "f"))
    return Amount(rounded.copy_negate() if negative and rounded else rounded, currency, warning)


def _ascii(text: str) -> str:
    """Return the text with ASCII characters in place of the digits, spaces and hyphens of all scripts, and without invisible
    characters."""
    characters = []
    for character in text.translate(_MINUS):
        digit = unicodedata.decimal(character, None)
        if digit is not None:
            characters.append(str(digit))
        elif character.isspace():
            characters.append(" ")
        elif character in "’‘ʼ＇":
            characters.append("'")
        elif unicodedata.category(character) != "Cf":
            characters.append(character)
    return "".join(characters).strip()


def _split_currency(text: str) -> tuple[str, str | None]:
    """Remove a currency symbol or code from an amount. Return the rest of the text, and the currency code, which may be None."""
    symbols = list(_SYMBOL.finditer(text))
    if len(symbols) == 1:
        (found,) = symbols
        before, after = text[: found.start()].strip(), text[found.end() :].strip()
        if before in ("", "-", "+", "(") or after in ("", "-", ")"):
            return f"{before}{after}", _SYMBOLS.get(found[0]) or _DOLLARS.get(found[1] or "")
    for pattern in (_LEADING_CODE, _TRAILING_CODE):
        code = pattern.match(text) if pattern is _LEADING_CODE else _last(pattern, text)
        if code is not None:
            return (text[: code.start()] + text[code.end() :]).strip(), code[1].upper()
    return text, None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next((found for found in pattern.finditer(text) if found.end() == len(text)), None)


def _point(number: str) -> tuple[str, str]:
    """Remove the thousands separators from an unsigned number and replace its decimal separator by a point.

    Return the new text and a warning, which is "" if nothing was guessed. Raise ValueError if the text is not a number."""
    if _EXPONENT.fullmatch(number):
        return number, ""
    whole, fraction, warning = number, "", ""
    comma, point = number.rfind(","), number.rfind(".")
    if comma >= 0 and point >= 0:
        last = max(comma, point)
        whole, fraction = number[:last], number[last + 1 :]
        if number[last] in whole:
            raise ValueError("has several decimal points")
    elif number.count(",") == 1 or number.count(".") == 1:
        last = max(comma, point)
        before, after = number[:last], number[last + 1 :]
        if number[last] == "," and len(after) == 3 and before.strip("0") and _GROUPED.fullmatch(number.replace(" ", ",")):
            warning = (
                f"was read as {number.replace(',', '').replace(' ', '')}, because a comma before three digits separates thousands"
            )
        else:
            whole, fraction = before, after
    if not whole.isdecimal() and whole:
        if not _GROUPED.fullmatch(whole):
            raise ValueError("is not a number")
        whole = re.sub(r"[ ',.]", "", whole)
    if not (whole or fraction) or (fraction and not fraction.isdecimal()):
        raise ValueError("is not a number")
    return f"{whole or '0'}.{fraction}" if fraction else whole, warning


def _trim(value: Decimal) -> Decimal:
    """Return the decimal without trailing zeros after the point."""
    return Decimal(format(value, "f").rstrip("0").rstrip("."))


_CODE = re.compile(r"[A-Z0-9]{2,10}")

_ISO_4217 = """
AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BYR BZD CAD CDF CHE CHF CHW
CLF CLP CNY COP COU CRC CUC CUP CVE CZK DJF DKK DOP DZD EEK EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HRK
HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LTL LVL LYD MAD MDL MGA MKD
MMK MNT MOP MRO MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR
SBD SCR SDG SEK SGD SHP SLE SLL SOS SRD SSP STD STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD USN UYI UYU UYW
UZS VED VEF VES VND VUV WST XAD XAF XAG XAU XBA XBB XBC XBD XCD XCG XDR XOF XPD XPF XPT XSU XTS XUA XXX YER ZAR ZMK ZMW ZWG ZWL
"""
#: The currency codes of ISO 4217, including the codes that were withdrawn since 2010.
ISO_4217 = frozenset(_ISO_4217.split())


def parse_currency(text: str) -> tuple[str, str]:
    """Return a currency code in capitals, and a warning if it is not in ISO 4217. Raise ValueError if the text is not a code."""
    code = text.strip().upper()
    if (symbol := _SYMBOL.fullmatch(code)) is not None and (named := _SYMBOLS.get(code) or _DOLLARS.get(symbol[1] or "")):
        return named, ""
    if not _CODE.fullmatch(code) or not code.isascii():
        raise ValueError("is not a currency code such as EUR")
    return code, "" if code in ISO_4217 else f"{code} is not a code of ISO 4217"
