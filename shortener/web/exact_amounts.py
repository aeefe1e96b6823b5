"""This module reads amounts in JSON with all their digits. A JSON parser returns a number as a float, which loses digits after the
17th.

`parse_number` is for a JSON decoder that reads all numbers exactly. Such a decoder is slow, so the bodies of messages are parsed
with floats. `restore_amounts` then replaces the amounts that have more digits than a float can represent.
"""
# Tested by tests/web/test_request_body.py and tests/web/test_report_input.py

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

#: The names of the fields that contain amounts.
_AMOUNTS = frozenset({"mt_price"})
#: A number with more characters than a float can always represent, in a field that contains an amount.
_LONG_AMOUNT = re.compile(rb'"(?:%s)"\s*:\s*-?[0-9][0-9.eE+-]{15,}' % "|".join(_AMOUNTS).encode())


def parse_number(text: str) -> Decimal | str:
    """Return a JSON number as a decimal. Return the text if its exponent is too large for a decimal."""
    try:
        return Decimal(text)
    except ArithmeticError:
        return text


_DECODER = json.JSONDecoder(parse_float=parse_number, parse_constant=str, strict=False)


def restore_amounts(content: bytes, data: Any) -> None:
    """Replace the amounts with many digits in `data`, which is the parsed JSON of `content`, by exact decimals."""
    if _LONG_AMOUNT.search(content) is None:
        return
    try:
        exact = _DECODER.decode(content.decode("latin-1"))  # only the numbers are used, so the encoding of texts does not matter
    except (ValueError, RecursionError):  # `content` is damaged JSON in another encoding
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
