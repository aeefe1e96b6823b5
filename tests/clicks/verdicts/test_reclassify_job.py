"""Tests of the background job that reclassifies hits for applications with `retract_clicks`."""

import pytest
from sqlalchemy import Connection, update

from shortener.clicks.resolver import CONFIRMED
from shortener.clicks.verdicts.correction import CorrectionResult
from shortener.container import Service
from shortener.model import Topic
from shortener.storage import schema
from tests.clicks.helpers import change_settings, create_codes, fetch_rows
from tests.clicks.verdicts.helpers import PHONE, SCANNER, only_message, record_click, run_reclassifier, sent_events
from tests.conftest import Clock


async def test_the_reclassification_job_examines_each_hit_once_when_it_is_old_enough(service: Service, clock: Clock) -> None:
    await change_settings(service, max_recipients_per_address_minute=1, retract_clicks=True)
    step = service.jobs.table["reclassify"].step
    assert await step() == 0  # the first step stores the position at which the job starts
    for _ in range(3):
        await record_click(service, (await create_codes(service))[0], origin=7)
    clock.forward(minutes=2)
    assert await step() == 0
    clock.forward(minutes=2)
    assert await step() == 1
    clock.forward(minutes=2)
    assert await step() == 0
    assert service.reclassifier.total.retracted == 1


async def test_the_total_of_the_reclassification_job_does_not_grow_with_the_number_of_retracted_clicks(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    for run in range(1, 4):
        await record_click(service, (await create_codes(service))[0], SCANNER)
        result = await run_reclassifier(service)
        assert len(result.corrections.unsettled) == 1
        assert service.reclassifier.total == CorrectionResult(to_suspected=run, retracted=run, retracted_messages=run, events=run)


async def test_the_reclassification_job_examines_only_hits_of_applications_with_the_setting_retract_clicks(
    service: Service, clock: Clock
) -> None:
    await change_settings(service, max_recipients_per_address_minute=1)
    step = service.jobs.table["reclassify"].step
    await step()
    for _ in range(3):
        await record_click(service, (await create_codes(service))[0], origin=7)
    clock.forward(minutes=5)
    assert await step() == 0
    assert [hit.verdict for hit in await fetch_rows(service, schema.hits)] == [0, 1, 1]


@pytest.mark.parametrize(("rule", "user_agent"), [("test", PHONE), (CONFIRMED, SCANNER), (CONFIRMED, "")])
async def test_the_reclassification_job_assigns_a_missing_first_click_to_a_message(
    retracting: Service, clock: Clock, rule: str, user_agent: str
) -> None:
    service = retracting
    await change_settings(service, confirm_clicks="suspicious", max_recipients_per_address_minute=1)
    step = service.jobs.table["reclassify"].step
    await step()
    (code,) = await create_codes(service)
    person = await record_click(service, code, user_agent, rule=rule)

    # Remove the first click. The same can happen if a click is stored while an earlier click is retracted.
    def lose(connection: Connection) -> None:
        connection.execute(schema.first_clicks.delete())
        connection.execute(update(schema.hits).values(flags=0))
        connection.execute(schema.events.delete())

    await service.database.write(lose)
    clock.forward(minutes=5)
    await step()
    assert await sent_events(service) == [(Topic.STATE | Topic.CLICK, person)]
    assert (await only_message(service)).click_hit_id == person


async def test_the_reclassification_job_continues_at_once_after_the_clock_was_five_hours_ahead(
    retracting: Service, clock: Clock
) -> None:
    service = retracting
    clock.forward(hours=5)
    assert await service.reclassifier.step(clock()) == 0  # this step stores the position of the job, which is five hours ahead
    clock.forward(hours=-5)
    (code,) = await create_codes(service)
    await record_click(service, code, SCANNER)
    assert await service.reclassifier.step(clock.forward(minutes=5)) == 1
