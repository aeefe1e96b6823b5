"""Every setting, once: name, type, default and one line of help.

Read from TOML (`SHORTENER_CONFIG`: a file, or a folder whose `*.toml` are read in order; `config/shortener.toml` when it is
there), then overridden by `SHORTENER_<NAME>`, or by the contents of the file that `SHORTENER_<NAME>_FILE` names.
`config/shortener.toml` and the table in the docs are written from this class; a test compares them.

Raises `SettingsError` with one line per unusable setting.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from shortener.urls import UrlError, parse_base_url

PREFIX = "SHORTENER_"
DEFAULT_BASE_URL = "http://127.0.0.1:8000"
DEFAULT_CONFIG = Path("config/shortener.toml")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class SettingsError(Exception):
    """The settings cannot be used; the text names each one and why."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    data_dir: Path = Field(Path("data"), description="Folder of the SQLite database and the secret.")
    database_url: str = Field("", description="sqlite:///FILE or postgresql://...; empty: DATA_DIR/shortener.db.")
    database_pool: int = Field(
        8, ge=1, le=500, description="PostgreSQL connections that a process keeps; it opens as many again under load."
    )
    database_timeout: float = Field(
        10.0, gt=0, le=3600, description="Seconds that a statement of the server may take on PostgreSQL."
    )
    redis_url: str = Field("", description="redis://, rediss://, redis+sentinel:// or redis+cluster:// URL; empty: no Redis.")
    redis_timeout: float = Field(0.1, gt=0, le=5, description="Seconds after which Redis counts as down.")
    redis_connections: int = Field(16, ge=2, le=500, description="Most Redis connections of a process.")
    spool_limit: int = Field(1_000_000, ge=1, description="Most hits in the Redis stream during an outage of the database.")
    base_url: str = Field(DEFAULT_BASE_URL, description="Prefix of short links of applications without a domain.")
    secret: str = Field("", description="Master secret, 32 characters or more; empty: made once and kept in DATA_DIR/secret.")

    host: str = Field("127.0.0.1", description="Address that `serve` listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port that `serve` listens on; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=64, description="Processes of one `serve`; more than one needs PostgreSQL.")
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = Field(
        (), description="Networks whose X-Forwarded-For is believed, separated by commas."
    )

    link_ttl_days: int = Field(90, ge=1, le=3650, description="Days that a link lives when the request does not say.")
    code_bits: int = Field(48, ge=40, le=62, description="Random bits of a link's code; 48 are spelled in 10 characters.")
    batch_limit: int = Field(1000, ge=1, le=100_000, description="Most recipients or reports in one request.")
    body_limit: int = Field(8 * 1024 * 1024, ge=1024, description="Largest request body, in bytes.")

    hit_deadline: float = Field(2.0, gt=0, le=60, description="Seconds after which a redirect no longer waits for the store.")
    hits_waiting: int = Field(100_000, ge=1, description="Most hits that wait in memory while the store cannot take them.")
    ip_privacy: Literal["full", "short", "none"] = Field(
        "short", description="How much of a handset's address is kept: full, short (/24, /48) or none."
    )

    delivery_attempts: int = Field(10, ge=1, le=50, description="Attempts of a delivery in all, the first one included.")
    delivery_timeout: float = Field(5.0, gt=0, le=60, description="Seconds that one attempt may take in total.")
    delivery_schedule: Annotated[tuple[float, ...], NoDecode] = Field(
        (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400),
        description="Seconds between attempts, separated by commas; jitter is added, never subtracted.",
    )
    delivery_slots: int = Field(256, ge=1, le=4096, description="Attempts under way at once in one process.")
    delivery_slots_per_tracker: int = Field(
        16, ge=1, le=1024, description="Attempts under way at once for one tracker that names no `concurrency` of its own."
    )
    delivery_processes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Processes that deliver from this database (each worker of serve, each deliver, on all machines): a tracker's "
        "concurrency is shared out among them, at least 1 each. WORKERS counts if it is more.",
    )
    delivery_recovery_rate: float = Field(
        100.0, gt=0, le=100_000, description="Deliveries a second to a tracker that has just recovered, until its backlog is gone."
    )
    allow_private_targets: bool = Field(False, description="Let trackers live on private or loopback addresses (development).")
    allow_http_targets: bool = Field(True, description="Let trackers use http:// as well as https://.")

    hit_retention_days: int = Field(365, ge=1, description="Days that hits are kept.")
    message_retention_days: int = Field(365, ge=1, description="Days that messages, links and conversions are kept.")
    event_retention_days: int = Field(90, ge=8, description="Days that finished events, deliveries and attempts are kept.")
    purge_interval: float = Field(60.0, gt=0, description="Seconds between two runs of the purge in the background.")
    purge_batch: int = Field(50, ge=1, le=10_000, description="Rows that the purge deletes in one transaction.")

    shutdown_delay: float = Field(
        1.0,
        ge=0,
        le=60,
        description="Seconds after SIGTERM in which requests are still taken while /readyz says 503, so that load balancers turn "
        "elsewhere; the process is gone 9 s later at most.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line that is written.")
    log_format: Literal["json", "text"] = Field("json", description="One JSON object a line, or text for people.")

    @field_validator("delivery_schedule", mode="before")
    @classmethod
    def _split_numbers(cls, value: Any) -> Any:
        return [float(part) for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("delivery_schedule")
    @classmethod
    def _check_schedule(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 <= delay <= 30 * 86400 for delay in value):
            raise ValueError("wants one delay or more, each from 0 to 30 days")
        return value

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _split_networks(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        try:
            return parse_base_url(value)
        except UrlError as error:
            raise ValueError(error.reason) from None

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, value: str) -> str:
        if value and (len(value) < 32 or len(set(value)) < 10):
            raise ValueError("is too weak: 32 random characters or more, or leave it empty to have one made")
        return value

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:///", "postgresql://", "postgres://")):
            raise ValueError("wants sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE")
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        if value:
            from shortener.redis.client import check_redis_url

            check_redis_url(value)
        return value

    @model_validator(mode="after")
    def _workers_need_postgresql(self) -> Settings:
        if self.workers > 1 and not self.is_postgresql:
            raise ValueError("workers above 1 need DATABASE_URL=postgresql://...: SQLite belongs to one process")
        return self

    @property
    def is_postgresql(self) -> bool:
        return self.database_url.startswith("postgres")

    @property
    def store_url(self) -> str:
        """`database_url`, or the default under `data_dir`."""
        return self.database_url or f"sqlite:///{self.data_dir / 'shortener.db'}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load` gathers the sources itself, so that `_FILE` and the config folder work the same for every setting.
        return (init_settings,)


def load(environ: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """The settings of this process: defaults < TOML < environment < `overrides` (a command line's options)."""
    values = _from_toml(environ) | _from_environment(environ) | {k: v for k, v in overrides.items() if v is not None}
    if values.get("base_url", DEFAULT_BASE_URL) == DEFAULT_BASE_URL and "port" in values:
        # Links that lead to another port than the one that answers would be of no use to anybody.
        values["base_url"] = f"http://127.0.0.1:{values['port']}"
    try:
        return Settings(**values)
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}" for item in error.errors()]
        raise SettingsError("\n".join(lines)) from None


def _from_toml(environ: Mapping[str, str]) -> dict[str, Any]:
    named = environ.get(PREFIX + "CONFIG", "")
    place = Path(named) if named else DEFAULT_CONFIG
    if named and not place.exists():
        raise SettingsError(f"{PREFIX}CONFIG: there is no file or folder {place}")
    files = sorted(place.glob("*.toml")) if place.is_dir() else [place] if place.exists() else []
    values: dict[str, Any] = {}
    for file in files:
        try:
            values |= tomllib.loads(file.read_text())
        except (tomllib.TOMLDecodeError, OSError) as error:
            raise SettingsError(f"{file}: {error}") from None
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in Settings.model_fields:
        variable = PREFIX + name.upper()
        if variable + "_FILE" in environ:
            try:
                values[name] = Path(environ[variable + "_FILE"]).read_text().strip()
            except OSError as error:
                raise SettingsError(f"{variable}_FILE: {error}") from None
        elif variable in environ:
            values[name] = environ[variable]
    return values


def as_toml() -> str:
    """`config/shortener.toml`: every setting with its help and its default."""
    lines = [
        "# Every setting with its default. Written by `make config` from shortener/settings.py; a test compares them.",
        "# SHORTENER_<NAME> in the environment, or a file named by SHORTENER_<NAME>_FILE, wins over this file.",
    ]
    for name, field in Settings.model_fields.items():
        lines += ["", f"# {field.description}", f"{name} = {_toml_value(field.default)}"]
    return "\n".join(lines) + "\n"


def as_markdown() -> str:
    """`docs/reference/settings.md`."""
    lines = [
        "# Settings",
        "",
        "Written by `make config` from `shortener/settings.py`; a test compares them. A setting is read from TOML",
        "(`SHORTENER_CONFIG` names a file, or a folder whose `*.toml` are read in order; `config/shortener.toml` if it is there),",
        "then from `SHORTENER_<NAME>` in the environment, or from the file that `SHORTENER_<NAME>_FILE` names (for secrets).",
        "",
        "| setting | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = _toml_value(field.default).replace('""', "(empty)")
        lines.append(f"| `{name.upper()}` | `{default}` | {field.description} |")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    return '"' + str(value) + '"'
