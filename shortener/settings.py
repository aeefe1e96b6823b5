"""The table of all settings, with the name, type, default and help text of each setting.

`settings_sources.load` reads the values from TOML and from the environment. `make config` generates config/shortener.toml and
docs/reference/settings.md from this table, and a test checks that both files are up to date. The module is long because it is one
table.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from shortener.redis_urls import parse_redis_url
from shortener.urls import UrlError, parse_base_url

PREFIX = "SHORTENER_"
DEFAULT_BASE_URL = "http://127.0.0.1:8000"
DEFAULT_CONFIG = Path("config/shortener.toml")
MAX_DELAY_SECONDS = 30 * 86400
MIN_SECRET_LENGTH = 32
MIN_SECRET_VARIETY = 10  # A secret must contain at least this many different characters.

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class SettingsError(Exception):
    """Raised if the settings cannot be used. The text has one line for each error, with the name of the setting and the reason."""


class Settings(BaseModel):
    """All settings of one process. Times are in seconds unless the name says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    data_dir: Path = Field(Path("data"), description="Folder that contains the SQLite database and the secret file.")
    database_url: str = Field(
        "",
        repr=False,
        description="URL of the database: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE. Empty: "
        "DATA_DIR/shortener.db.",
    )
    database_pool: int = Field(
        8,
        ge=1,
        le=500,
        description="Number of PostgreSQL connections that each process keeps open. Under load, a process opens up to twice as "
        "many.",
    )
    database_timeout: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Maximum duration in seconds of an SQL statement of the server. PostgreSQL cancels a longer statement.",
    )
    redis_url: str = Field(
        "", repr=False, description="URL of Redis: redis://, rediss://, redis+sentinel:// or redis+cluster://. Empty: no Redis."
    )
    redis_timeout: float = Field(
        0.1, gt=0, le=5, description="Seconds that Redis may take to respond to a command. After this time, Redis counts as down."
    )
    redis_connections: int = Field(16, ge=2, le=500, description="Maximum number of Redis connections of a process.")
    spool_limit: int = Field(
        1_000_000, ge=1, description="Maximum number of hits that Redis stores until the database is available again."
    )
    base_url: str = Field(
        DEFAULT_BASE_URL,
        description="First part of the short links of applications without a domain, such as https://go.example. It may contain "
        "a path.",
    )
    secret: SecretStr = Field(
        SecretStr(""),
        description="Master secret: at least 32 random characters. Empty: the first start creates a secret in the file "
        "DATA_DIR/secret.",
    )

    initial_api_key: SecretStr = Field(
        SecretStr(""),
        description="API key that the first start gives to the default application: at least 32 random characters. If it is set, "
        "the first start prints no credentials. Empty: the first start creates a key and prints it.",
    )
    initial_tracker_token: SecretStr = Field(
        SecretStr(""),
        description="Tracker token that the first start gives to the default application: at least 32 random characters. Empty: "
        "the first start creates a token. If INITIAL_API_KEY is set, the first start does not print the token: create a new one "
        "with `shortener tokens rotate 1`.",
    )

    portal: bool = Field(True, description="Serve the portal, the pages for operators, under /portal: on or off.")
    portal_url: str = Field(
        "",
        description="Scheme and host of the portal, such as https://portal.example. The portal is then served on that host only. "
        "Empty: the portal is served on the host of BASE_URL, on localhost and on IP addresses.",
    )
    portal_session_idle_hours: float = Field(
        8.0, gt=0, le=720, description="Hours without a request after which the session of an operator ends."
    )
    portal_session_days: float = Field(
        7.0, gt=0, le=90, description="Maximum number of days between the sign-in of an operator and the end of the session."
    )

    host: str = Field("127.0.0.1", description="IP address or host name that the command `serve` listens on.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port that the command `serve` listens on. 0: a free port is selected.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of processes that the command `serve` starts. More than one process requires PostgreSQL.",
    )
    trusted_proxies: tuple[Network, ...] = Field(
        (), description="IP networks of proxies whose X-Forwarded-For header is trusted, separated by commas."
    )

    connections_per_address: int = Field(
        4096,
        ge=1,
        description="Maximum number of connections of one process from one client IP address (IPv6: one /64). It does not apply "
        "to TRUSTED_PROXIES or to programs on the same machine.",
    )
    request_timeout: float = Field(
        20.0,
        gt=0,
        le=600,
        description="Seconds that a client may take to send the body of a request or to read a response. A body gets one more "
        "second for each 64 KiB.",
    )
    network_files: tuple[Path, ...] = Field(
        (),
        description="Paths of MaxMind DB files (.mmdb) or text files with the country, network and hosting provider of IP "
        "addresses, separated by commas. Empty: off. Hits from hosting networks are suspected.",
    )

    link_ttl_days: int = Field(
        90, ge=1, le=3650, description="Days after which a short link expires, unless the request states another time."
    )
    code_bits: int = Field(
        48, ge=40, le=62, description="Number of random bits in the code of a short link. 48 bits give a code of 10 characters."
    )
    batch_limit: int = Field(1000, ge=1, le=100_000, description="Maximum number of recipients, or of reports, in one API request.")
    report_wait: float = Field(
        1.0,
        ge=0,
        le=10,
        description="Seconds that a delivery report for an unknown message waits. A report can arrive before its message is "
        "stored.",
    )
    body_limit: int = Field(8 * 1024 * 1024, ge=1024, description="Maximum size of the body of an HTTP request in bytes.")

    unknown_code_limit: int = Field(
        300,
        ge=0,
        le=1_000_000,
        description="Maximum number of requests for unknown codes that a client (an IPv4 address or an IPv6 /64) may send in a "
        "minute. Further requests get 429. 0: no limit. Requests for codes of links are never limited.",
    )
    rejected_credential_limit: int = Field(
        120,
        ge=0,
        le=1_000_000,
        description="Maximum number of requests with a wrong credential that a client (an IPv4 address or an IPv6 /64) may send "
        "in a minute. Further requests get 429. 0: no limit. Requests with a valid credential do not count.",
    )
    postback_limit: int = Field(
        3000,
        ge=0,
        le=10_000_000,
        description="Maximum number of reports in a minute with one postback key. Further reports get 429. 0: no limit.",
    )

    report_delivery_limit: int = Field(
        120_000,
        ge=0,
        le=100_000_000,
        description="Maximum number of deliveries to trackers that the delivery reports of one application may create in a minute: "
        "the number of reports multiplied by the number of trackers that receive them. Further reports get 429. 0: no limit.",
    )

    hit_deadline: float = Field(
        2.0, gt=0, le=60, description="Seconds that a redirect waits for the database before it responds without the database."
    )
    hits_waiting: int = Field(
        100_000, ge=1, description="Maximum number of hits that each process keeps in memory until the database is available again."
    )
    suspected_hits_limit: int = Field(
        600,
        ge=0,
        description="Maximum number of suspected hits of one link that a process stores and counts in a minute. Further hits "
        "are redirected, but they only increase the metric shortener_hits_not_stored. 0: no limit.",
    )
    ignored_hits_limit: int = Field(
        60,
        ge=0,
        description="Maximum number of HEAD requests and prefetches of one link that a process stores and counts in a minute. "
        "Further requests are redirected, but they only increase the metric shortener_hits_not_stored. 0: no limit.",
    )
    ip_privacy: Literal["full", "short", "none"] = Field(
        "short", description="How much of a recipient's IP address is stored: full, short (/24 or /48) or none."
    )

    delivery_attempts: int = Field(
        10, ge=1, le=50, description="Maximum number of attempts to deliver an event to a tracker, including the first attempt."
    )
    delivery_timeout: float = Field(
        5.0, gt=0, le=60, description="Maximum duration in seconds of one attempt to deliver an event to a tracker."
    )
    delivery_schedule: tuple[float, ...] = Field(
        (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400),
        description="Seconds between the attempts of a delivery, separated by commas. Random jitter makes each delay longer, "
        "never shorter.",
    )
    delivery_proxy: str = Field(
        "",
        pattern=r"^(https?://[^\s/?#]+/?)?$",
        description="HTTP proxy for all requests to trackers, such as http://proxy:3128, with user and password if it needs "
        "them. The IP address of the proxy may be private; the hosts of trackers are still checked. Empty: no proxy.",
    )
    delivery_slots: int = Field(256, ge=1, le=4096, description="Maximum number of simultaneous delivery attempts of one process.")
    delivery_slots_per_tracker: int = Field(
        16,
        ge=1,
        le=1024,
        description="Maximum number of simultaneous delivery attempts to a tracker that has no `concurrency` of its own.",
    )
    delivery_processes: int = Field(
        0,
        ge=0,
        le=1024,
        description="Number of processes among which the concurrency of a tracker is divided. 0: the number of "
        "processes that deliver from this database.",
    )
    delivery_recovery_rate: float = Field(
        100.0,
        ge=0.01,
        le=100_000,
        description="Maximum number of deliveries per second to a tracker that works again after failures, until its backlog is "
        "empty.",
    )
    allow_private_targets: bool = Field(
        False, description="Allow trackers on private and loopback addresses, for development: true or false."
    )
    allow_http_targets: bool = Field(True, description="Allow trackers with http:// URLs in addition to https://: true or false.")

    gateway_slots: int = Field(
        128, ge=1, le=4096, description="Maximum number of messages that one process hands on to gateways at the same time."
    )
    gateway_slots_per_gateway: int = Field(
        16,
        ge=1,
        le=1024,
        description="Maximum number of messages that all processes together hand on to one gateway at the same time, unless the "
        "gateway has its own `concurrency`.",
    )
    gateway_timeout: float = Field(
        10.0, gt=0, le=120, description="Maximum duration in seconds of one attempt to hand a message on to a gateway."
    )
    gateway_attempts: int = Field(
        7, ge=1, le=50, description="Maximum number of attempts to hand a message on to a gateway, including the first attempt."
    )
    gateway_schedule: tuple[float, ...] = Field(
        (5, 30, 120, 600, 1800, 3600),
        description="Seconds between the attempts to hand a message on, separated by commas. Random jitter makes each delay "
        "longer, never shorter.",
    )
    gateway_validity_hours: int = Field(
        24,
        ge=1,
        le=720,
        description="Hours after which a message that no gateway accepted becomes FAILED. Then its text is deleted.",
    )

    hit_retention_days: int = Field(365, ge=1, description="Days after which a hit on a short link is deleted.")
    message_retention_days: int = Field(
        365, ge=1, description="Days after which a message is deleted with its links and conversions."
    )
    event_retention_days: int = Field(
        90, ge=8, description="Days after which an event with its finished deliveries and attempts is deleted."
    )
    purge_interval: float = Field(
        60.0, gt=0, description="Seconds between two runs of the background job that deletes old data (the purge)."
    )
    purge_batch: int = Field(
        50,
        ge=1,
        le=10_000,
        description="Maximum number of rows that the purge of old data deletes in one transaction. `shortener purge` deletes up to "
        "2,000 rows while no clicks and no messages arrive.",
    )

    shutdown_delay: float = Field(
        1.0,
        ge=0,
        le=60,
        description="Seconds after SIGTERM in which the process still accepts requests while /readyz returns 503, so that load "
        "balancers stop sending requests. The process ends at most 9 seconds later.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level of log lines that are written: debug, info, warning or error."
    )
    log_format: Literal["json", "text"] = Field(
        "json", description="Format of log lines: json (one object per line) or text (for reading in a terminal)."
    )
    access_log: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Write one log line for each click, with its verdict, and for each request of the API: on, off, or auto (on if "
        "LOG_FORMAT is text). The lines contain no IP addresses, phone numbers or credentials.",
    )

    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://[^\s/?#]+(/[^\s]*)?)?$",
        description="URL of an OpenTelemetry collector that receives traces of messages (OTLP over HTTP), such as "
        "http://127.0.0.1:4318/v1/traces. Needs the packages of the extra `tracing`. Empty: no traces.",
    )
    trace_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the messages that are traced, from 0 to 1. A message is traced completely or not at all.",
    )

    @field_validator("delivery_schedule", "gateway_schedule", mode="before")
    @classmethod
    def _split_numbers(cls, value: Any) -> Any:
        try:
            return [float(part) for part in value.split(",")] if isinstance(value, str) else value
        except ValueError:
            raise ValueError("must be delays in seconds, separated by commas, such as 5,300,1800") from None

    @field_validator("delivery_schedule", "gateway_schedule")
    @classmethod
    def _check_schedule(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 <= delay <= MAX_DELAY_SECONDS for delay in value):
            raise ValueError("must be one or more delays, each from 0 to 2592000 seconds (30 days)")
        return value

    @field_validator("trusted_proxies", "network_files", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        try:
            parsed = parse_base_url(value)
            return parsed.origin + parsed.path
        except UrlError as error:
            raise ValueError(error.reason) from None

    @field_validator("portal_url")
    @classmethod
    def _check_portal_url(cls, value: str) -> str:
        if not value:
            return value
        try:
            parsed = parse_base_url(value)
        except UrlError as error:
            raise ValueError(error.reason) from None
        if parsed.path:
            raise ValueError("must have no path; the portal is at /portal")
        return parsed.origin

    @field_validator("secret", "initial_api_key", "initial_tracker_token")
    @classmethod
    def _check_secret(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if text and is_weak_secret(text):
            raise ValueError("is too weak: must be at least 32 random characters, or empty to create one at the first start")
        return value

    @field_validator("initial_api_key", "initial_tracker_token")
    @classmethod
    def _check_header_value(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[!-~]*", value.get_secret_value()):
            raise ValueError("must contain only ASCII characters without spaces, because it is sent in a header")
        return value

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:///", "postgresql://", "postgres://")):
            raise ValueError("must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE")
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        if value:
            parse_redis_url(value)
        return value

    @model_validator(mode="after")
    def _check_workers(self) -> Settings:
        if self.workers > 1 and not self.is_postgresql:
            raise ValueError("WORKERS above 1 requires DATABASE_URL=postgresql://...: only one process can use a SQLite database")
        return self

    @property
    def is_postgresql(self) -> bool:
        return self.database_url.startswith("postgres")

    @property
    def logs_access(self) -> bool:
        """Whether each click and each request of the API is logged."""
        return self.access_log == "on" or (self.access_log == "auto" and self.log_format == "text")

    @property
    def base_origin(self) -> str:
        """The scheme, the host and the port of the setting BASE_URL."""
        return parse_base_url(self.base_url).origin

    @property
    def portal_origin(self) -> str:
        """The scheme, the host and the port of the portal: PORTAL_URL, or by default the origin of BASE_URL."""
        return self.portal_url or self.base_origin

    @property
    def base_path(self) -> str:
        """The path of the setting BASE_URL, which is before the codes of links; "" if BASE_URL has no path."""
        return parse_base_url(self.base_url).path

    @property
    def has_default_base_url(self) -> bool:
        """Whether BASE_URL is not set. Short links then work only on this machine."""
        return "base_url" not in self.model_fields_set

    @property
    def store_url(self) -> str:
        """The setting `database_url`, or by default the URL of the SQLite database in `data_dir`."""
        return self.database_url or f"sqlite:///{self.data_dir / 'shortener.db'}"


def is_weak_secret(text: str) -> bool:
    """Return whether a secret is too short, or has too few different characters."""
    return len(text) < MIN_SECRET_LENGTH or len(set(text)) < MIN_SECRET_VARIETY


def is_loopback(host: str) -> bool:
    """Return whether a host name or address can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
