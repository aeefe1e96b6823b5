"""Tests of each setting of the gateway simulator."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shortener.delivery.guard import Guard
from shortener.delivery.sender import Sender
from shortener.gateways.simulator import KIND, SimulatorSettings
from shortener.gateways.submission import GatewayConfig, GatewayContext, GatewayReport, OutgoingMessage, SubmitOutcome, SubmitResult
from shortener.model import utcnow

MESSAGE = OutgoingMessage("0abc", "m-1", "+14085550100", "hello", "Brand", "GSM-7", 1, "https://go.example/r/0abc")


async def simulate(**settings: Any) -> tuple[SubmitResult, list[GatewayReport]]:
    """Submit one message to a simulator. Return the result and the reports that arrived."""
    has_report = not settings.keys() & {"reject", "reject_numbers", "fail", "silent", "delay"} and settings.get("report") != "none"
    reports: list[GatewayReport] = []

    async def report(gateway_id: int, one: GatewayReport) -> bool:
        reports.append(one)
        return True

    async with Sender(Guard(), user_agent="test", limit=1) as sender:
        config = GatewayConfig(
            1, "simulator", "simulator", 1, SimulatorSettings(report_delay=0.01, **settings), "https://x.example"
        )
        gateway = KIND.open(config, GatewayContext(sender, sender, report, utcnow))
        result = await gateway.submit(MESSAGE, 0.2)
        for _ in range(18_000 if has_report else 5):
            if reports:
                break
            await asyncio.sleep(0.01)  # wait a moment before the condition is checked again
        await gateway.close()
    return result, reports


@pytest.mark.parametrize(
    ("settings", "word"), [({}, "DELIVERED"), ({"report": "EXPIRED"}, "EXPIRED"), ({"undelivered": 1}, "FAILED")]
)
async def test_the_simulator_reports_the_delivery_of_an_accepted_message(settings: dict[str, Any], word: str) -> None:
    result, [report] = await simulate(**settings)
    assert (result.outcome, result.gateway_message_id) == (SubmitOutcome.ACCEPTED, "sim-0abc")
    assert (report.word, report.reference) == (word, "0abc")


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        ({"reject": 1}, SubmitOutcome.REJECTED),
        ({"reject_numbers": "99,0100"}, SubmitOutcome.REJECTED),
        ({"fail": 1}, SubmitOutcome.RETRY),
        ({"silent": 1}, SubmitOutcome.DOUBT),
        ({"delay": 1}, SubmitOutcome.DOUBT),
        ({"report": "none"}, SubmitOutcome.ACCEPTED),
    ],
)
async def test_the_simulator_causes_the_failures_that_its_settings_define(settings: dict[str, Any], outcome: SubmitOutcome) -> None:
    result, reports = await simulate(**settings)
    assert result.outcome is outcome
    assert reports == []
