"""The simulator: a gateway that sends nothing. It accepts messages and reports them as DELIVERED after a second.

It is for evaluation and tests. Its settings make it reject or delay messages, leave out responses, or report failures, each for a
fraction of the messages. It always rejects a message if the phone number ends with one of the digit groups in `reject_numbers`.
Therefore a test can select the result by the number.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field

from shortener.gateways.submission import (
    GatewayConfig,
    GatewayConnection,
    GatewayContext,
    GatewayReport,
    OutgoingMessage,
    SubmitOutcome,
    SubmitResult,
)

log = structlog.get_logger(__name__)


class SimulatorSettings(BaseModel):
    """The settings of a simulator. A fraction is a number from 0 (no message) to 1 (all messages)."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)

    delay: float = Field(0.0, ge=0, le=60, description="Seconds until the response to a message.")
    report: Literal["DELIVERED", "FAILED", "EXPIRED", "none"] = Field(
        "DELIVERED", description="State in the delivery report of an accepted message. none: there is no report."
    )
    report_delay: float = Field(1.0, ge=0, le=3600, description="Seconds from the response to the delivery report.")
    reject: float = Field(0.0, ge=0, le=1, description="Fraction of the messages (0 to 1) that are rejected and become FAILED.")
    fail: float = Field(0.0, ge=0, le=1, description="Fraction of the attempts (0 to 1) that fail temporarily and are repeated.")
    silent: float = Field(
        0.0, ge=0, le=1, description="Fraction of the attempts (0 to 1) that get no response. Their messages become doubtful."
    )
    undelivered: float = Field(
        0.0, ge=0, le=1, description="Fraction of the accepted messages (0 to 1) that are reported as FAILED."
    )
    reject_numbers: str = Field(
        "",
        max_length=100,
        pattern=r"^[0-9,]*$",
        description="Last digits of the phone numbers whose messages are rejected, separated by commas, such as 99,0100.",
    )


class SimulatorGateway:
    """A gateway connection to the simulator."""

    def __init__(self, config: GatewayConfig, context: GatewayContext) -> None:
        assert isinstance(config.settings, SimulatorSettings)
        self._config = config
        self._settings = config.settings
        self._context = context
        self._rng = random.Random()  # noqa: S311 - selects simulated failures, not a secret
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, message: OutgoingMessage, timeout: float) -> SubmitResult:
        """Return the simulated result for a message, and plan its delivery report."""
        settings, chance = self._settings, self._rng.random
        if settings.delay:
            await asyncio.sleep(min(settings.delay, timeout))
        if settings.delay >= timeout or chance() < settings.silent:
            return SubmitResult(SubmitOutcome.DOUBT, "timeout", "the simulator does not respond")
        if chance() < settings.fail:
            return SubmitResult(SubmitOutcome.RETRY, "gateway_error", "the simulator fails temporarily", status=500)
        endings = [ending for ending in settings.reject_numbers.split(",") if ending]
        if chance() < settings.reject or any(message.phone.endswith(ending) for ending in endings):
            return SubmitResult(
                SubmitOutcome.REJECTED, "rejected", "the simulator rejects the message", error_code="SIM-1", status=400
            )
        gateway_id = f"sim-{message.reference}"
        if settings.report != "none":
            word = "FAILED" if chance() < settings.undelivered else settings.report
            report = GatewayReport(word, reference=message.reference, gateway_message_id=gateway_id)
            task = asyncio.get_running_loop().create_task(self._report(report))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return SubmitResult(SubmitOutcome.ACCEPTED, "accepted", gateway_message_id=gateway_id, status=200)

    async def _report(self, report: GatewayReport) -> None:
        await asyncio.sleep(self._settings.report_delay)
        try:
            await self._context.report(self._config.id, report)
        except Exception:
            log.warning("simulated_report_lost", gateway=self._config.name)

    async def close(self) -> None:
        """Cancel the delivery reports that are planned but not sent yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _SimulatorKind:
    """The gateway kind `simulator`, whose gateways send nothing."""

    name = "simulator"
    settings_model: type[BaseModel] = SimulatorSettings

    def describe(self, settings: BaseModel) -> Mapping[str, Any]:
        """Return all settings. None of them is a credential."""
        return settings.model_dump(mode="json")

    def target(self, settings: BaseModel) -> tuple[str, int] | None:
        """Return None. The simulator connects to nothing."""
        return None

    def operator_values(self, settings: BaseModel) -> Mapping[str, object]:
        """Return no values. The simulator connects to nothing."""
        return {}

    def open(self, config: GatewayConfig, context: GatewayContext) -> GatewayConnection:
        return SimulatorGateway(config, context)


KIND = _SimulatorKind()
