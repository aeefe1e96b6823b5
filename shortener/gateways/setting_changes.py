"""This module merges new settings with the stored settings of a gateway.

A name such as `variables.password` changes one member of a setting that is an object, and the other members stay. New options of a
preset replace all settings that the preset builds. The API shows a secret value only as a mask. The functions reject a mask as a
new value. Otherwise the service would store the mask and send it to the gateway in place of the secret.

The functions raise ApiError INVALID_REQUEST.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.gateways.input_checks import refuse
from shortener.gateways.kinds import KINDS
from shortener.gateways.masking import MASK_REASON, find_masks
from shortener.gateways.presets import PresetError, build_settings, read_options


def check_masks(settings: Mapping[str, Any], options: Mapping[str, str]) -> None:
    """Reject settings and options of a preset that contain the mask of a hidden value."""
    names = [f"settings.{name}" for name in find_masks(settings)] + [f"options.{name}" for name in find_masks(options)]
    if names:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(name, MASK_REASON) for name in names])


def build_preset(preset: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of a new gateway from a preset and its options."""
    try:
        return build_settings(preset, options)
    except PresetError as error:
        raise refuse("options", str(error)) from None


def rebuild_preset(preset: str, stored: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, Any]:
    """Build the settings of the preset again, and return them together with the other stored settings. An option that is absent
    keeps its stored value."""
    if not preset:
        raise refuse("options", "must be combined with a preset, and this gateway has none; change its settings instead")
    values = {**read_options(preset, stored), **options}
    if stored.get("url") and "url" not in values:
        reason = (
            f"must contain url, because the preset {preset} did not build the stored URL; or change the settings instead of the "
            f"options"
        )
        raise refuse("options", reason)
    return {**stored, **build_preset(preset, values)}


def merge_settings(kind: str, stored: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored settings of a gateway of this kind, changed by the new settings. None as the value of a member, such as
    variables.password, removes the member. If a setting is not stored, a new member is added to the members of its default."""
    merged = dict(stored)
    for name, value in new.items():
        setting, dot, member = name.partition(".")
        if not dot:
            _check_variable_name(name, stored)
            merged[name] = value
            continue
        members = merged[setting] if setting in merged else _default(kind, setting)
        if not isinstance(members, Mapping) or not member:
            raise refuse(f"settings.{name}", f"{setting} has no members")
        merged[setting] = {**members, member: value}
        if value is None:
            del merged[setting][member]
    return merged


def _default(kind: str, setting: str) -> Any:
    """Return the default of a setting; an empty dict if there is no such kind or setting, which the validation then rejects."""
    field = KINDS[kind].settings_model.model_fields.get(setting) if kind in KINDS else None
    return {} if field is None else field.default


def _check_variable_name(name: str, stored: Mapping[str, Any]) -> None:
    """Reject a name that is not the name of a setting, but the name of a variable."""
    if name not in stored and name in stored.get("variables", {}):
        raise refuse(f"settings.{name}", f"is a variable of this gateway: write variables.{name}, or --variable {name}=VALUE")
