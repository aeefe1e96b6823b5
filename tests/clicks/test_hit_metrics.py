"""Tests of hit metrics: the code in Python, the code in SQL, the recorder, corrections and the recount must assign the same
metric to a hit.
"""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from shortener.clicks.hit_metrics import HIT_METRIC, IS_CLICK, hit_metric
from shortener.clicks.verdicts.correction import VerdictChange, apply_changes
from shortener.container import Service
from shortener.model import HitFlag, Verdict
from shortener.reporting.count_check import verify
from shortener.reporting.counts import fold
from shortener.storage import schema
from tests.clicks.helpers import create_codes, fetch_rows, make_hit
from tests.conftest import Clock

ALL_KINDS = [(verdict, HitFlag(flags)) for verdict in Verdict for flags in range(2 ** len(HitFlag))]


@pytest.mark.parametrize(
    ("verdict", "flags", "metric"),
    [
        (Verdict.HUMAN, HitFlag.NONE, "clicks"),
        (Verdict.HUMAN, HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE, "clicks"),
        (Verdict.HUMAN, HitFlag.LATE, "late_hits"),
        (Verdict.HUMAN, HitFlag.DISABLED, None),
        (Verdict.HUMAN, HitFlag.DISABLED | HitFlag.LATE, "late_hits"),
        (Verdict.SUSPECTED, HitFlag.RETRACTED, "suspected_hits"),
        (Verdict.SUSPECTED, HitFlag.DISABLED, "suspected_hits"),
        (Verdict.SUSPECTED, HitFlag.LATE, "late_hits"),
        (Verdict.IGNORED, HitFlag.DISABLED, "ignored_hits"),
        (Verdict.IGNORED, HitFlag.LATE, "late_hits"),
    ],
)
def test_each_hit_is_counted_as_one_metric_or_is_not_counted(verdict: Verdict, flags: HitFlag, metric: str | None) -> None:
    assert hit_metric(verdict, flags) == metric


async def test_python_and_sql_assign_the_same_hit_metric_to_every_verdict_and_flag(service: Service) -> None:
    (code,) = await create_codes(service)
    await service.recorder.record(make_hit(service, code))
    (stored,) = await fetch_rows(service, schema.hits)
    rows = [{**stored._mapping, "id": service.ids(), "verdict": int(verdict), "flags": int(flags)} for verdict, flags in ALL_KINDS]
    await service.database.write(lambda connection: connection.execute(insert(schema.hits), rows))
    h = schema.hits.c
    statement = select(h.verdict, h.flags, HIT_METRIC, IS_CLICK)
    found = await service.database.read(lambda connection: connection.execute(statement).all())
    assert len(found) == len(ALL_KINDS) + 1
    for verdict, flags, metric, is_click in found:
        assert metric == hit_metric(verdict, flags)
        assert bool(is_click) == (metric == "clicks")


async def test_the_click_recorder_verdict_corrections_and_the_recount_use_the_same_metric_for_every_kind_of_hit(
    service: Service, clock: Clock
) -> None:
    async def differences() -> list[Any]:
        await service.database.write(fold)
        return await service.database.read(verify, clock() - timedelta(days=1), clock() + timedelta(days=1))

    (active,) = await create_codes(service)
    (late,) = await create_codes(service, expires_in=60)
    (disabled,) = await create_codes(service)
    of_disabled = update(schema.links).where(schema.links.c.code == disabled)
    await service.database.write(lambda c: c.execute(of_disabled.values(disabled_at=clock())))
    clock.forward(seconds=90)
    for code in (active, late, disabled):
        for verdict in Verdict:
            for _ in range(2):
                await service.recorder.record(make_hit(service, code, verdict))
    assert await differences() == []

    # The device job must count the hits first, because a correction skips hits that this job has not counted.
    clock.forward(minutes=10)
    await service.devices.catch_up()
    assert await differences() == []
    opposite = {Verdict.HUMAN: Verdict.SUSPECTED, Verdict.SUSPECTED: Verdict.HUMAN}
    links = {link.id: link.message_id for link in await fetch_rows(service, schema.links)}
    changes = [
        VerdictChange(hit.id, links[hit.link_id], Verdict(hit.verdict), opposite[Verdict(hit.verdict)], "test", True)
        for hit in await fetch_rows(service, schema.hits)
        if hit.verdict in opposite
    ]
    result = await apply_changes(service.database, changes, service.ids, clock())
    assert (result.to_suspected, result.to_human) == (6, 6)
    assert await differences() == []
