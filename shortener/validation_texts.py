"""The texts of pydantic errors, in one style for the API, the command line and the settings: "must be at least 1" or "is
required".

The texts contain no names of classes, validators or union members. For an error of an unknown type, the functions return
pydantic's own text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Context = Mapping[str, Any]

#: The words that name the required type, by type of the pydantic error. A field that permits several types (a union) has one
#: error for each type; their words are joined with "or".
_TYPES: Mapping[str, str] = {
    "string_type": "a string",
    "string_unicode": "a string",
    "string_sub_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "mapping_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "datetime_type": "a time in ISO 8601, such as 2026-11-20T12:00:00Z",
    "datetime_parsing": "a time in ISO 8601, such as 2026-11-20T12:00:00Z",
    "datetime_from_date_parsing": "a time in ISO 8601, such as 2026-11-20T12:00:00Z",
    "datetime_object_invalid": "a time in ISO 8601, such as 2026-11-20T12:00:00Z",
    "timezone_aware": "a time with a time zone",
    "tuple_type": "a list",
    "set_type": "a list",
    "decimal_type": "a number",
    "decimal_parsing": "a number",
    "ip_v4_network": "an IP network such as 10.0.0.0/8",
    "ip_v6_network": "an IP network such as 10.0.0.0/8",
    "none_required": "null",
}


def _shown(limit: object) -> object:
    """Return a limit as people write it: 60 and not 60.0."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


#: The reason that is reported for a field that does not exist in the model.
UNKNOWN_FIELD = "is not a known field"

_REASONS: Mapping[str, Callable[[Context], str]] = {
    "missing": lambda context: "is required",
    "extra_forbidden": lambda context: UNKNOWN_FIELD,
    "literal_error": lambda context: f"must be {context['expected']}",
    "enum": lambda context: f"must be {context['expected']}",
    "greater_than": lambda context: f"must be greater than {_shown(context['gt'])}",
    "greater_than_equal": lambda context: f"must be at least {_shown(context['ge'])}",
    "less_than": lambda context: f"must be less than {_shown(context['lt'])}",
    "less_than_equal": lambda context: f"must be at most {_shown(context['le'])}",
    "string_too_short": lambda context: f"must have at least {_count(context['min_length'], 'character')}",
    "string_too_long": lambda context: f"must have at most {_count(context['max_length'], 'character')}",
    "too_short": lambda context: f"must have at least {_count(context['min_length'], _unit(context))}",
    "too_long": lambda context: f"must have at most {_count(context['max_length'], _unit(context))}",
    "string_pattern_mismatch": lambda context: f"must match the pattern {context['pattern']}",
    "value_error": lambda context: str(context["error"]),
}


MAX_SUGGESTED_LENGTH = 40


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that an unknown name probably means, or None."""
    import difflib  # imported here, because only errors need it

    if len(name) > MAX_SUGGESTED_LENGTH:
        return None
    names = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.75)
    return names[found[0]] if found and names[found[0]] != name else None


def unknown_field(name: str, known: Iterable[str]) -> str:
    """Return the reason that is reported for a field that does not exist, with the nearest known name."""
    nearest = nearest_name(name, known)
    return UNKNOWN_FIELD if nearest is None else f"{UNKNOWN_FIELD}; did you mean {nearest}?"


def are_wrong_types(errors: Sequence[ErrorDetails]) -> bool:
    """Return whether all errors of a value say that its type is wrong."""
    return all(error["type"] in _TYPES for error in errors)


def error_reasons(errors: Sequence[ErrorDetails]) -> list[str]:
    """Return the different reasons why one value is invalid. `errors` contains all pydantic errors of the value. If the value may
    have several types (a union), it contains the errors of each type. A wrong type is reported only if the value has none of the
    permitted types."""
    others = [error for error in errors if error["type"] not in _TYPES]
    if others:
        return list(dict.fromkeys(map(_reason, others)))
    types = dict.fromkeys(_TYPES[error["type"]] for error in errors)
    types.pop("null", None)
    return [f"must be {_either(list(types)) or 'null'}"]


def named_reasons(errors: Sequence[ErrorDetails]) -> list[tuple[str, str]]:
    """Return the name and the reason of each invalid value of a model without nested models. An item of a list is named with its
    index, such as trusted_proxies.0. The name is empty if the error concerns the whole model."""
    by_name: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        # `loc` also contains names of validators and union members, which are left out.
        name = ".".join(str(part) for index, part in enumerate(error["loc"]) if index == 0 or isinstance(part, int))
        by_name.setdefault(name, []).append(error)
    return [(name, reason) for name, found in by_name.items() for reason in error_reasons(found)]


def _reason(error: ErrorDetails) -> str:
    known = _REASONS.get(error["type"])
    if known is not None:
        return known(error.get("ctx", {}))
    return error["msg"].replace("Input should be", "must be").replace("Value should", "must")


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _unit(context: Context) -> str:
    """Return the unit of a length: characters for a text, items for a list. If a function has checked a text before, pydantic
    reports its type as "Value"."""
    return "character" if context.get("field_type") == "Value" else "item"


def _count(number: int, noun: str) -> str:
    # Numbers in API errors have no thousands separator, because programs read them.
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
