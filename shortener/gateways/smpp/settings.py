"""The settings of an SMPP gateway."""
# Tested by tests/gateways/smpp/test_kind.py

from __future__ import annotations

import ssl
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

DEFAULT_PORTS = {"smpp": 2775, "smpps": 3550}
#: The possible notations of message ids in responses and in receipts (receipts.py).
MessageIds = Literal["same", "hex_response", "hex_receipt", "hex"]


class SmppSettings(BaseModel):
    """The settings of an SMPP gateway."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)

    url: str = Field(
        max_length=300,
        description="Address of the gateway: smpp://host:port, or smpps://host:port for TLS. Default ports: 2775 and 3550.",
    )
    system_id: str = Field(max_length=15, description="System id (user name) of the account.")
    password: str = Field("", max_length=8, description="Password of the account. It is never shown. SMPP 3.4 allows 8 characters.")
    system_type: str = Field("", max_length=12, description="System type, if the gateway requires one.")
    service_type: str = Field("", max_length=5, description="Service type of the messages, if the gateway requires one.")
    window: int = Field(
        10, ge=1, le=1000, description="Maximum number of messages without a response in the session of one process. Default: 10."
    )
    enquire_link_seconds: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="Seconds without received data after which the connection is tested with enquire_link. Default: 30.",
    )
    receipts: bool = Field(True, description="true: request a delivery receipt for each message. Default: true.")
    message_ids: MessageIds = Field(
        "same",
        description="Notation of message ids. same: receipts repeat the id of the response. hex_response: ids are hexadecimal in "
        "responses and decimal in receipts. hex_receipt: the reverse. hex: both are hexadecimal, but differ in case or zeros.",
    )
    source_ton: int | None = Field(
        None, ge=0, le=6, description="Type of number (TON) of senders. Default: 5 for names, 3 for short codes, else 1."
    )
    source_npi: int | None = Field(
        None, ge=0, le=18, description="Numbering plan (NPI) of senders. Default: 1 for numbers, else 0."
    )
    dest_ton: int = Field(1, ge=0, le=6, description="Type of number (TON) of recipients. Default: 1 (international).")
    dest_npi: int = Field(1, ge=0, le=18, description="Numbering plan (NPI) of recipients. Default: 1 (E.164).")
    retry_statuses: tuple[str, ...] = Field(
        (), max_length=50, description="Further command statuses that mean a temporary failure, such as 0x45."
    )
    tls_ca: str = Field(
        "",
        max_length=32_000,
        description="Certificates (PEM) of the authorities that sign the gateway's certificate. Default: public ones.",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            raise ValueError("must be smpp://host:port or smpps://host:port") from None
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname or port == 0 or not value.isascii():
            raise ValueError("must be smpp://host:port or smpps://host:port")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("must not contain a path or a query")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must not contain credentials; use system_id and password")
        return value

    @field_validator("system_id", "password", "system_type", "service_type")
    @classmethod
    def _check_ascii(cls, value: str) -> str:
        if not value.isascii() or "\0" in value:
            raise ValueError("must be ASCII")
        return value

    @field_validator("system_id")
    @classmethod
    def _check_system_id(cls, value: str) -> str:
        if not value:
            raise ValueError("must not be empty")
        return value

    @field_validator("retry_statuses", mode="before")
    @classmethod
    def _split_statuses(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("retry_statuses")
    @classmethod
    def _check_statuses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_status(text)
        return value

    @field_validator("tls_ca")
    @classmethod
    def _check_certificates(cls, value: str) -> str:
        if value:
            try:
                ssl.create_default_context(cadata=value)
            except (ssl.SSLError, ValueError):
                raise ValueError("must be certificates in the PEM format") from None
        return value

    @property
    def is_tls(self) -> bool:
        return urlsplit(self.url).scheme == "smpps"

    @property
    def target(self) -> tuple[str, int]:
        """The host and the port in the URL."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]


def parse_status(text: str) -> int:
    """Return a command status from its number, such as 0x45 or 69. Raise ValueError."""
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{text!r} must be a number such as 0x45") from None
