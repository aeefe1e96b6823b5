"""This module contains the base class of the request models of vendors' calls. It accepts unknown fields and null, and fields
that have no effect cause warnings.

Clients of vendors send fields that this service does not know, and null for fields that are not set, so both are accepted. A
field that this service knows but does not support is marked with `Unsupported`.
"""
# Tested by tests/web/vendors/test_vendor_model.py

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shortener.model import record

MAX_WARNINGS = 20  # The maximum number of warnings about the fields of one model.
_MAX_NAME_LENGTH = 64

#: The response field that contains the warnings of `field_warnings` about the whole request.
RequestWarnings = Annotated[list[str], Field(description="Warnings about fields of the request that have no effect.")]


@record
class Unsupported:
    """A mark for a field that has no effect in this service. A value that is neither false nor empty causes a warning with
    `reason`."""

    reason: str


class VendorModel(BaseModel):
    """Base class of vendors' request models. A field that is null counts as absent."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _remove_null(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


def field_warnings(model: BaseModel, path: str = "", *, without: str = "") -> list[str]:
    """Return warnings about the fields of a request that have no effect in this service. `path` is the path of the model in the
    request.

    `without` is the name of a field. Warnings about this field are not included."""
    found: list[str] = []
    for warning in _warnings(model, f"{path}." if path else "", without):
        if len(found) == MAX_WARNINGS:
            break
        found.append(warning)
    return found


def _warnings(model: BaseModel, prefix: str, without: str) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        if name not in model.model_fields_set or name == without:
            continue
        path, value = f"{prefix}{field.alias or name}", getattr(model, name)
        mark = next((one for one in field.metadata if isinstance(one, Unsupported)), None)
        if mark is not None:
            if value:
                yield f"{path} {mark.reason}"
        elif isinstance(value, BaseModel):
            yield from _warnings(value, f"{path}.", "")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from _warnings(item, f"{path}.{index}.", "")
    for name in model.model_extra or {}:
        yield f"{prefix}{name[:_MAX_NAME_LENGTH]} is not a known field; it was ignored"
