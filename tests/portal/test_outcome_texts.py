"""Tests of the texts that describe the outcomes of attempts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import shortener
from shortener.delivery.outcomes import OUTCOME_TABLE
from shortener.delivery.send_failures import ERRORS
from shortener.portal.outcome_texts import DELIVERY_OUTCOMES, SEND_OUTCOMES, delivery_outcome, send_outcome

ROOT = Path(shortener.__file__).parent


def _codes(folder: str, *patterns: str) -> set[str]:
    """Return the codes in the source files of a package that match one of the patterns."""
    source = "\n".join(file.read_text() for file in (ROOT / folder).rglob("*.py"))
    return {code for pattern in patterns for code in re.findall(pattern, source)}


def test_the_portal_has_words_for_every_outcome_of_a_delivery() -> None:
    stored = {rule.name for rule in OUTCOME_TABLE if rule.name != "success"} | set(ERRORS)
    stored |= _codes(
        "delivery", r'error(?:, since)? = "([a-z_]+)"', r'queue(?:\.name)?, "([a-z_]+)", now', r'give_back\(attempt, "([a-z_]+)"'
    )
    assert {"tracker_deleted", "breaker_open", "application_disabled", "interrupted"} <= stored, "the patterns find the codes"
    assert stored - set(DELIVERY_OUTCOMES) == set()


def test_the_portal_has_words_for_every_outcome_of_a_message_that_a_gateway_sends() -> None:
    used = _codes(
        "gateways",
        r'SubmitOutcome\.[A-Z]+, "([a-z_]+)"',
        r'NotConnected\("([a-z_]+)"',
        r'failed\(\w+, now, "([a-z_]+)"',
        r'row_after\([\w.]+, SendStatus\.[A-Z]+, now, "([a-z_]+)"',
        r'_not_sent\(progress, "([a-z_]+)"',
        r'_local\("([a-z_]+)"',
    )
    assert {"gateway_timeout", "bind_refused", "expired", "lease_lost", "unusable_gateway"} <= used, "the patterns find the codes"
    assert used - set(SEND_OUTCOMES) - set(DELIVERY_OUTCOMES) == set()


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (500, "other_status", "the endpoint responded with 500"),
        (200, None, "accepted with 200"),
        (None, "timeout", "the endpoint did not respond in time"),
        (200, "timeout", "the endpoint responded with 200, but the rest of the response did not arrive in time"),
        (500, "breaker_open", "the endpoint failed for too long (last response: 500)"),
        (None, "a_code_of_a_later_version", "a code of a later version"),
        (None, None, ""),
    ],
)
def test_the_outcome_of_a_delivery_is_described_in_words(status: int | None, error: str | None, text: str) -> None:
    assert delivery_outcome(status, error) == text


def test_the_outcome_of_a_gateway_names_the_gateway() -> None:
    assert send_outcome("timeout") == "the gateway did not respond in time"
    assert send_outcome("resolver_down") == DELIVERY_OUTCOMES["resolver_down"]
