"""A gateway as the database stores it, and the values that create or change one."""
# Tested by tests/gateways/test_store.py

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypedDict

from pydantic import BaseModel

from shortener.delivery.health import TrackerHealth
from shortener.delivery.pace import TrackerPace
from shortener.gateways.submission import GatewayConfig

OnDoubt = Literal["resend", "hold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewGateway:
    """The values of a gateway to create. `preset` and `options` build its settings; `settings` replace single values of them."""

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
    """The new values for an existing gateway. Absent keys keep their values.

    `settings` contains single values that replace those of the gateway; `rotate_report_key` replaces the key for its reports."""

    name: str
    settings: Mapping[str, Any]
    enabled: bool
    on_doubt: OnDoubt
    max_attempts: int | None
    timeout: float | None
    concurrency: int | None
    max_per_second: float | None
    schedule: list[float] | None
    rotate_report_key: bool


@dataclass(frozen=True, slots=True)
class StoredGateway:
    """A stored gateway. `config` contains its decrypted settings. None in a limit means the setting of the installation."""

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
    health: TrackerHealth
    pace: TrackerPace
    created_at: datetime
    updated_at: datetime

    @property
    def id(self) -> int:
        return self.config.id

    @property
    def name(self) -> str:
        return self.config.name


class LostSettings(BaseModel):
    """The settings of a gateway that were encrypted with a secret that is lost. A change can set new ones."""
