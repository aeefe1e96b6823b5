"""Tests of the settings of SMPP gateways."""

from __future__ import annotations

import sys
from subprocess import run

import pytest
from pydantic import ValidationError

from shortener.gateways.smpp.kind import KIND
from shortener.gateways.smpp.settings import SmppSettings
from tests.one_test import in_one_test

VALID = {"url": "smpp://smsc.example:2775", "system_id": "user", "password": "secret"}


def test_the_password_of_an_smpp_gateway_is_never_shown() -> None:
    shown = KIND.describe(SmppSettings(**VALID))
    assert shown["password_set"] is True
    assert "secret" not in str(shown)


@pytest.mark.parametrize(
    ("url", "target", "is_tls"),
    [
        ("smpp://smsc.example", ("smsc.example", 2775), False),
        ("smpps://smsc.example", ("smsc.example", 3550), True),
        ("smpp://[::1]:99/", ("::1", 99), False),
    ],
)
def test_the_host_the_port_and_the_use_of_tls_are_read_from_the_smpp_url(url: str, target: tuple[str, int], is_tls: bool) -> None:
    settings = SmppSettings(url=url, system_id="user")
    assert (KIND.target(settings), settings.is_tls) == (target, is_tls)


@in_one_test
@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("url", "http://smsc.example", "smpp://host:port"),
        ("url", "smpp://", "smpp://host:port"),
        ("url", "smpp://smsc.example:99999", "smpp://host:port"),
        ("url", "smpp://user:secret@smsc.example", "must not contain credentials"),
        ("url", "smpp://smsc.example/path", "must not contain a path"),
        ("system_id", "", "must not be empty"),
        ("system_id", "ü", "must be ASCII"),
        ("password", "123456789", "at most 8 characters"),
        ("window", "0", "greater than or equal to 1"),
        ("retry_statuses", "0x45,often", "'often' must be a number such as 0x45"),
        ("message_ids", "octal", "'same', 'hex_response', 'hex_receipt' or 'hex'"),
        ("tls_ca", "text", "must be certificates in the PEM format"),
    ],
)
def test_invalid_smpp_settings_are_rejected_with_a_reason(field: str, value: str, reason: str) -> None:
    with pytest.raises(ValidationError) as raised:
        SmppSettings(**VALID | {field: value})
    assert reason in raised.value.errors()[0]["msg"]


def test_the_smpp_library_is_imported_only_when_a_connection_is_opened() -> None:
    code = "import sys, shortener.gateways.kinds; sys.exit('smpplib' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
