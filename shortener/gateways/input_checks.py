"""This module checks the values that create or change a gateway. The checks raise ApiError INVALID_REQUEST or FORBIDDEN_TARGET."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from shortener.accounts.gateway_entries import SIMULATOR
from shortener.delivery.pace import MAX_PER_SECOND, MIN_PER_SECOND
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.gateways.gateway import LostSettings, StoredGateway
from shortener.gateways.kinds import KINDS
from shortener.validation_texts import UNKNOWN_FIELD, error_reasons, nearest_name, unknown_field

MAX_TIMEOUT_SECONDS, MAX_DELAY_SECONDS = 120, 86_400
#: The properties of a gateway that limit its attempts. People look for them among the settings of its kind.
GATEWAY_LIMITS = ("on_doubt", "max_attempts", "timeout", "concurrency", "max_per_second", "schedule")
_NO_SETTING = "It is a property of the gateway, and not one of its settings"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_RESERVED_NAMES = frozenset({"none", "true", "false", "default", SIMULATOR})


def refuse(field: str, reason: str) -> ApiError:
    """Return the error for one invalid field of a gateway."""
    return ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(field, reason)])


def check_name(name: str) -> None:
    """Check the name of a gateway. Raise ApiError INVALID_REQUEST."""
    if not _NAME.fullmatch(name) or name.lower() in _RESERVED_NAMES:
        reason = f"must have 1 to 64 letters, digits, spaces and . _ -, and must not be {', '.join(sorted(_RESERVED_NAMES))}"
        raise refuse("name", reason)


def check_limits(limits: Mapping[str, Any]) -> None:
    """Check the limits `timeout`, `max_per_second` and `schedule` of a gateway. None and an absent value mean the default. Raise
    ApiError INVALID_REQUEST if a limit is invalid.

    The API has already checked these values. The command line has not: it accepts every number, even nan and inf, with which the
    dispatcher cannot calculate."""
    timeout, rate, schedule = (limits.get(name) for name in ("timeout", "max_per_second", "schedule"))
    if timeout is not None and not 0 < timeout <= MAX_TIMEOUT_SECONDS:
        raise refuse("timeout", f"must be above 0 and at most {MAX_TIMEOUT_SECONDS} seconds")
    if rate is not None and not MIN_PER_SECOND <= rate <= MAX_PER_SECOND:
        raise refuse("max_per_second", f"must be from {MIN_PER_SECOND:g} to {MAX_PER_SECOND:.0f}")
    if schedule is not None and not (schedule and all(0 <= delay <= MAX_DELAY_SECONDS for delay in schedule)):
        raise refuse("schedule", f"must be one or more delays, each from 0 to {MAX_DELAY_SECONDS} seconds")


def parse_settings(kind: str, values: Mapping[str, Any]) -> BaseModel:
    """Return the validated settings of a kind of gateway. Raise ApiError INVALID_REQUEST with each invalid setting."""
    if kind not in KINDS:
        raise refuse("kind", f"must be {' or '.join(KINDS)}")
    try:
        return KINDS[kind].settings_model.model_validate(values)
    except ValidationError as error:
        details = []
        for item in error.errors(include_url=False, include_input=False):
            path = ".".join(["settings", *(str(part) for part in item["loc"])])
            details += [Detail(path, _name_setting(kind, path, reason)) for reason in error_reasons([item])]
        raise ApiError(ErrorCode.INVALID_REQUEST, details=details) from None


def _name_setting(kind: str, path: str, reason: str) -> str:
    """Return the reason why a setting is invalid. If the setting is unknown, the reason also contains the nearest known name."""
    name = path.removeprefix("settings.")
    if reason != UNKNOWN_FIELD or "." in name:
        return reason
    if name in GATEWAY_LIMITS:
        return f"{reason}. {_NO_SETTING}"
    known = (*KINDS[kind].settings_model.model_fields, *GATEWAY_LIMITS)
    named = unknown_field(name, known)
    return f"{named} {_NO_SETTING}" if nearest_name(name, known) in GATEWAY_LIMITS else named


def check_customer_change(stored: StoredGateway, parsed: BaseModel, new: Mapping[str, Any]) -> None:
    """Check the new settings of a gateway if a customer, and not the operator, changes it. Raise ApiError if the change is not
    permitted."""
    kind, before = KINDS[stored.config.kind], stored.config.settings
    if stored.config.allow_private:
        known = {} if isinstance(before, LostSettings) else kind.operator_values(before)
        changed = [name for name, value in kind.operator_values(parsed).items() if name not in known or known[name] != value]
        if changed:
            reason = "can be changed only on the command line, because the gateway may have a private address"
            raise ApiError(ErrorCode.FORBIDDEN_TARGET, details=[Detail(f"settings.{name}", reason) for name in changed])
    if isinstance(before, LostSettings) or kind.target(before) == kind.target(parsed):
        return
    kept = [name for name in ("variables", "headers", "body") if getattr(before, name, None) and name not in new]
    if kept:
        reason = "must be set again if the address of the gateway changes, because it may contain credentials"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(f"settings.{name}", reason) for name in kept])
