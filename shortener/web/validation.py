"""This module validates input with pydantic models. `validate` converts every pydantic error to a `Detail`. A detail has a path
of names in the request, such as `messages.3.to`, and a reason from `validation_texts`, such as "must be at least 1". Paths and
reasons contain no names of classes, validators or union members.

A batch may have millions of errors. Therefore the model of a batch validates its items with `limit_errors`, so that pydantic
creates the errors of only one item at a time. The first MAX_DETAILS errors get details; further errors are only counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler
from pydantic_core import ErrorDetails

from shortener.errors import MAX_DETAILS, ApiError, Detail, ErrorCode
from shortener.model import mutable_record
from shortener.validation_texts import MAX_SUGGESTED_LENGTH, UNKNOWN_FIELD, are_wrong_types, error_reasons, unknown_field

_MAX_EXACT_DETAILS = 10_000  # up to this number, `details_total` is exact; a higher `details_total` is an upper bound

MAX_SUGGESTIONS = 10  # the maximum number of unknown field names of a request for which a similar known name is suggested

M = TypeVar("M", bound=BaseModel)


@mutable_record
class _ErrorCount:
    """The numbers of errors of one validation. `reported` is the number of errors with details. `hidden` is the number of all
    other errors."""

    reported: int = 0
    hidden: int = 0


def limit_errors(value: Any, validate_item: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Validate one item of a batch. After MAX_DETAILS errors, count the errors of further items without creating details.

    This is a validator for `pydantic.WrapValidator`."""
    count = info.context
    if not isinstance(count, _ErrorCount):
        return validate_item(value)
    before = count.reported
    try:
        return validate_item(value)
    except ValidationError as error:
        if before < MAX_DETAILS:
            count.reported = before + _count_details(error, value)  # This count includes errors of a nested batch.
            raise
        # An exact count is as slow as creating the details. After _MAX_EXACT_DETAILS errors, only estimate the number.
        count.hidden += _count_details(error, value) if count.hidden < _MAX_EXACT_DETAILS else error.error_count()
        return None  # The validation of the whole input fails, so nothing uses this None.


class InvalidInput(ApiError):
    """Input that does not match its model. `data` is the input."""

    def __init__(self, details: Sequence[Detail], hidden_details: int, data: Any) -> None:
        super().__init__(ErrorCode.INVALID_REQUEST, details=details, hidden_details=hidden_details)
        self.data = data


def validate(model: type[M], data: Any) -> M:
    """Return `data` as the model. Raise InvalidInput with a detail for each invalid field."""
    count = _ErrorCount()
    try:
        # The core validator is faster than model_validate, whose additional checks are not needed here.
        validated: M = model.__pydantic_validator__.validate_python(data, context=count)
        return validated
    except ValidationError as error:
        details = _details(error.errors(include_url=False, include_input=False), data)
        raise InvalidInput(_suggest_names(model, details), count.hidden, data) from None


def _suggest_names(model: type[BaseModel], details: list[Detail]) -> list[Detail]:
    """Return the details. For an unknown field, the reason then suggests the known name that is most similar. Only the first
    MAX_SUGGESTIONS unknown fields get a suggestion, because the comparison of names takes longer than the validation."""
    unknown = [detail for detail in details if detail.reason == UNKNOWN_FIELD]
    if not unknown:
        return details
    known = list(_field_names(model, set()))
    names = dict.fromkeys(name for detail in unknown if len(name := detail.field.rpartition(".")[2]) <= MAX_SUGGESTED_LENGTH)
    reasons = {name: unknown_field(name, known) for name in list(names)[:MAX_SUGGESTIONS]}
    return [
        replace(detail, reason=reasons[name])
        if detail.reason == UNKNOWN_FIELD and (name := detail.field.rpartition(".")[2]) in reasons
        else detail
        for detail in details
    ]


def _field_names(annotation: Any, seen: set[Any]) -> Iterator[str]:
    """Yield the names of all fields of a model and of its nested models. `seen` contains the models that were already read."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in seen:
            seen.add(annotation)
            for name, field in annotation.model_fields.items():
                yield field.alias or name
                yield from _field_names(field.annotation, seen)
    else:
        for part in get_args(annotation):
            yield from _field_names(part, seen)


def _count_details(error: ValidationError, data: Any) -> int:
    """Return the number of details that `_details` returns for an error."""
    return len(_details(error.errors(include_url=False, include_input=False), data))


def _details(errors: Sequence[ErrorDetails], data: Any) -> list[Detail]:
    """Return one detail for each reason of a pydantic error. For a union, report a wrong type only if no member of the union
    accepts the type of the value."""
    by_field: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_field.setdefault(_path(error, data), []).append(error)
    parents = {field[:end] for field in by_field for end in _ends_of_parts(field)}
    details = []
    for field, found in by_field.items():
        if field not in parents or not are_wrong_types(found):
            details += [Detail(field, reason) for reason in error_reasons(found)]
    return details


def _ends_of_parts(field: str) -> Iterator[int]:
    """Yield the index of each dot in the path of a field. The text before a dot is the path of a parent of the field."""
    end = field.find(".")
    while end >= 0:
        yield end
        end = field.find(".", end + 1)


def _path(error: ErrorDetails, data: Any) -> str:
    """Return the path of a field in `data`. Leave out the names of union members and validators, which pydantic adds."""
    parts: list[str] = []
    for position, part in enumerate(error["loc"]):
        if isinstance(data, list) and isinstance(part, int):
            data = data[part] if part < len(data) else None
        elif isinstance(data, dict) and part in data:
            data = data[part]
        elif not (error["type"] == "missing" and position == len(error["loc"]) - 1):
            continue
        parts.append(str(part))
    return ".".join(parts)
