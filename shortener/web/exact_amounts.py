"""This module reads amounts in JSON exactly. A usual JSON parser returns a number as a float, which loses the digits after the
17th.

A decoder with `parse_number` reads all numbers exactly, but it is slow. Therefore request bodies with messages are parsed with
floats, and `restore_amounts` then replaces the amounts that have more digits than a float can represent.
"""
# Tested by tests/web/test_request_body.py and tests/web/test_report_input.py

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

#: The names of the fields that contain amounts.
_AMOUNTS = frozenset({"mt_price"})
#: Matches a field that contains an amount of at least 16 characters. A shorter amount loses no digits when it is parsed as a
#: float.
_LONG_AMOUNT = re.compile(rb'"(?:%s)"\s*:\s*-?[0-9][0-9.eE+-]{15,}' % "|".join(_AMOUNTS).encode())


def parse_number(text: str) -> Decimal | str:
    """Return a JSON number as a decimal. If its exponent is too large for a decimal, return the text of the number."""
    try:
        return Decimal(text)
    except ArithmeticError:
        return text


_DECODER = json.JSONDecoder(parse_float=parse_number, parse_constant=str, strict=False)


def restore_amounts(content: bytes, data: Any) -> None:
    """In `data`, the parsed JSON of `content`, replace amounts with many digits by exact decimals."""
    if _LONG_AMOUNT.search(content) is None:
        return
    try:
        exact = _DECODER.decode(content.decode("latin-1"))  # Only numbers are used, so the encoding of texts does not matter.
    except (ValueError, RecursionError):
        # The content has a byte order mark, or its values are nested too deeply. The amounts stay floats.
        return
    _restore(data, exact)


def _restore(data: Any, exact: Any) -> None:
    if isinstance(data, dict) and isinstance(exact, dict):
        for name, value in data.items():
            if name in _AMOUNTS and isinstance(exact.get(name), Decimal):
                data[name] = exact[name]
            elif isinstance(value, dict | list):
                _restore(value, exact.get(name))
    elif isinstance(data, list) and isinstance(exact, list):
        for one, other in zip(data, exact, strict=False):
            if isinstance(one, dict | list):
                _restore(one, other)
