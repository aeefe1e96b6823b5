"""The data classes of a stored gateway, and of the values that create or change a gateway."""
# Tested by tests/gateways/test_store.py

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY
from datetime import datetime
from typing import Any, Literal, TypedDict

from pydantic import BaseModel

from shortener.delivery.health import EndpointHealth
from shortener.delivery.pace import EndpointPace
from shortener.gateways.submission import GatewayConfig
from shortener.model import record

OnDoubt = Literal["resend", "hold"]


@record
class NewGateway:
    """The values of a gateway to create. Its settings are built from `preset` and `options`, and then changed by `settings`."""

    _: KW_ONLY
    name: str
    kind: str = "http"
    preset: str = ""
    options: Mapping[str, str] | None = None
    settings: Mapping[str, Any] | None = None
    enabled: bool = True
    allow_private: bool = False
    on_doubt: OnDoubt = "resend"
    max_attempts: int | None = None
    timeout: float | None = None
    concurrency: int | None = None
    max_per_second: float | None = None
    schedule: list[float] | None = None


class GatewayChanges(TypedDict, total=False):
    """The new values for an existing gateway. A value whose key is absent stays unchanged.

    `settings` maps names of the gateway's settings to their new values. A name such as `variables.password` replaces one member of
    a setting. `options` are options of the gateway's preset. If there are options, the settings are built from the preset again,
    before `settings` changes them. If `rotate_report_key` is true, the key in the URL for delivery reports is replaced."""

    name: str
    settings: Mapping[str, Any]
    options: Mapping[str, str]
    enabled: bool
    on_doubt: OnDoubt
    max_attempts: int | None
    timeout: float | None
    concurrency: int | None
    max_per_second: float | None
    schedule: list[float] | None
    rotate_report_key: bool


@record
class StoredGateway:
    """A stored gateway. `config` contains its decrypted settings. If a limit is None, the setting of the installation applies."""

    config: GatewayConfig
    application_id: int
    preset: str
    enabled: bool
    on_doubt: str
    max_attempts: int | None
    timeout: float | None
    concurrency: int | None
    schedule: list[float] | None
    max_per_second: float | None
    health: EndpointHealth
    pace: EndpointPace
    created_at: datetime
    updated_at: datetime

    @property
    def id(self) -> int:
        return self.config.id

    @property
    def name(self) -> str:
        return self.config.name


class LostSettings(BaseModel):
    """A placeholder for the settings of a gateway that cannot be decrypted, because their secret is lost. A change of the gateway
    can set new settings."""
