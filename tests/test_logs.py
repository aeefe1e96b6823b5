"""What is never in a log line."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
import structlog

from shortener import logs
from shortener.settings import Settings
from tests.clicks.helpers import create_codes as send
from tests.clicks.helpers import make_hit as hit
from tests.conftest import MakeService, client_of

ADDRESS = "198.51.100.77"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def configure(form: Literal["json", "text"]) -> None:
    logs.configure(Settings(log_format=form))
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), cache_logger_on_first_use=False)


@dataclass
class Secret:
    number: str = "+14085550100"


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_exception_is_told_without_the_values_of_variables_and_rows(
    form: Literal["json", "text"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure(form)

    def fail(secret: Secret) -> None:
        raise ValueError(f"a message\nDETAIL:  Failing row contains ({secret.number}).")

    try:
        fail(Secret())
    except ValueError:
        structlog.get_logger().exception("job_failed", job="x")
    told = capsys.readouterr().err
    assert "a message" in told
    assert "in fail" in told
    assert "4085550100" not in told


@pytest.mark.parametrize("form", ["json", "text"])
async def test_the_address_of_a_hit_is_in_no_log_line_whatever_happens(
    make_service: MakeService, form: Literal["json", "text"], capsys: pytest.CaptureFixture[str]
) -> None:
    service = await make_service(ip_privacy="full", trusted_proxies="127.0.0.0/8", log_level="debug")
    configure(form)
    assert service.first_credentials is not None
    (code,) = await send(service)
    async with client_of(service, {"X-Forwarded-For": ADDRESS, "User-Agent": "Phone"}) as client:
        assert (await client.get(f"/{code}")).status_code == 302
        assert (await client.get("/nosuchcode")).status_code == 404
    broken = hit(service, code, address=ADDRESS, rule=None)  # no fault of ours can be made to order but this one
    await service.recorder.record(broken)
    told = capsys.readouterr().err
    assert "hit_not_recordable" in told
    assert ADDRESS not in told
