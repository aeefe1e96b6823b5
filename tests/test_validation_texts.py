"""Tests of the texts of pydantic errors."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shortener.validation_texts import named_reasons


class Values(BaseModel):
    model_config = ConfigDict(extra="forbid")

    days: int = Field(default=1, ge=1)
    networks: list[IPv4Network | IPv6Network] = []
    is_on: bool = False

    @model_validator(mode="after")
    def _check_all(self) -> Values:
        if self.days == 7:
            raise ValueError("must not have seven days")
        return self


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"days": "x"}, [("days", "must be an integer")]),
        ({"days": 0, "is_on": "maybe"}, [("days", "must be at least 1"), ("is_on", "must be true or false")]),
        ({"networks": ["10.0.0.0/8", "office"]}, [("networks.1", "must be an IP network such as 10.0.0.0/8")]),
        ({"color": 1}, [("color", "is not a known field")]),
        ({"days": 7}, [("", "must not have seven days")]),
    ],
)
def test_a_reason_has_the_name_of_the_value_and_no_names_of_validators(
    values: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    with pytest.raises(ValidationError) as caught:
        Values(**values)
    assert named_reasons(caught.value.errors()) == expected
