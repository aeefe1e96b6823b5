"""Moving an installation between databases, in both directions, also when it is cut off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, insert, select

from shortener.accounts.administration import create_application
from shortener.container import Service, open_service
from shortener.errors import StoreUnavailable
from shortener.messages.plan import RewriteItem
from shortener.reporting import counts
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.copy import BATCH, CopyError, Progress, copy, is_unfinished
from shortener.storage.database import Database
from shortener.storage.migrate import SchemaMismatch, migrate
from shortener.storage.open import open_database
from tests.clicks.helpers import create_codes as send
from tests.clicks.helpers import make_hit as hit
from tests.conftest import NOON, Clock, MakeService, new_postgresql_database
from tests.rows import Rows

MESSAGES = BATCH + 500  # more than one batch of them


async def lived(service: Service) -> None:
    """Something of everything."""
    (code,) = await send(service)
    await service.recorder.record(hit(service, code))
    await service.recorder.record(hit(service, code))
    application = service.directory.applications()[0]
    outgoing = RewriteItem(to=("+14085550101",), body="ü\u2028\U0001f600 plain", message_ids=("m-1",), metadata={"a": ["ß", None]})
    await service.rewriter.rewrite(application, [outgoing], idempotency_key="key")
    await service.database.write(many, application.id)
    await service.database.write(counts.fold)
    (code,) = await send(service)
    await service.recorder.record(hit(service, code))  # and a tally that is not folded yet


def many(connection: Connection, application: int) -> None:
    rows = Rows(connection)
    rows.complete_message(NOON - timedelta(days=1), application_id=application)
    connection.execute(insert(schema.messages), [message(number, application) for number in range(MESSAGES)])


def message(number: int, application: int) -> dict[str, Any]:
    return {
        "id": number + 1,
        "application_id": application,
        "cohort_id": 1,
        "message_id": f"old-{number}",
        "request_id": "",
        "content_hash": "",
        "to_address": f"+1408{number:07}",
        "state": 0,
        "created_at": NOON - timedelta(days=100),
        "encoding": "GSM-7",
        "segments": 1,
    }


@pytest.fixture
async def source(make_service: MakeService) -> Database:
    """A store that was served for a while, and is not any more."""
    service = await make_service()
    await lived(service)
    await service.recorder.flush()
    return service.database


@pytest.fixture
async def target_url(store_url: str, postgresql: str, postgresql_template: str, tmp_path: Path) -> str:
    """Of the other engine, with the schema in it."""
    if store_url.startswith("sqlite"):
        return await new_postgresql_database(postgresql, postgresql_template)
    url = f"sqlite:///{tmp_path / 'target.db'}"
    await migrate(url)
    return url


@pytest.fixture
async def target(target_url: str) -> AsyncIterator[Database]:
    database = await open_database(target_url, owner=True)
    yield database
    await database.close()


def nobody(progress: Progress) -> None:
    return


async def test_everything_is_moved_and_serves_on(
    source: Database, target: Database, target_url: str, tmp_path: Path, clock: Clock
) -> None:
    told: list[Progress] = []
    copied = await copy(source, target, told.append)
    assert copied["messages"] == MESSAGES + 4
    assert copied["hits"] == 4
    assert min(copied[name] for name in ("links", "events", "counts", "tallies", "installation", "idempotency", "api_keys")) > 0
    last = [one for one in told if one.table == "messages"]
    assert [(one.doing, one.done) for one in last] == [
        ("copied", BATCH),
        ("copied", MESSAGES + 4),
        ("compared", BATCH),
        ("compared", MESSAGES + 4),
        ("compared", BATCH),
        ("compared", MESSAGES + 4),
    ]
    for database in (source, target):
        await database.write(counts.fold)
        assert await database.read(counts.verify, NOON - timedelta(hours=1), NOON + timedelta(hours=1)) == []
    await target.close()

    settings = Settings(data_dir=tmp_path, database_url=target_url)  # the same folder: the same secret
    service = await open_service(settings, clock=clock)
    service.recorder.start()
    try:
        assert service.first_credentials is None
        (code,) = await service.database.read(lambda c: c.execute(select(schema.links.c.code).limit(1)).scalars().all())
        assert (await service.recorder.record(hit(service, code))).location
        made = await service.database.write(create_application, "another", NOON)
        assert made.application_id > 1, "the database numbers on"
    finally:
        await service.close(1)


class CutOff(Exception):
    pass


class Flimsy:
    """The target, over a connection that breaks after so many writes."""

    def __init__(self, database: Database, writes: int) -> None:
        self._database = database
        self._writes = writes
        self.read = database.read

    async def write(self, transact: Callable[..., Any], *args: Any) -> Any:
        self._writes -= 1
        if self._writes < 0:
            raise StoreUnavailable("cut off")
        return await self._database.write(transact, *args)


async def test_a_copy_that_was_cut_off_goes_on_and_nothing_serves_it_meanwhile(
    source: Database, target: Database, target_url: str, tmp_path: Path
) -> None:
    rounds = 0
    while True:
        try:
            flimsy: Any = Flimsy(target, writes=4)
            copied = await copy(source, flimsy, nobody)
            break
        except StoreUnavailable:
            rounds += 1
            assert await target.read(is_unfinished)
            if rounds == 2 and target.dialect == "postgresql":  # SQLite is this test's own, and refuses a second owner
                with pytest.raises(SchemaMismatch, match="shortener copy"):
                    await open_service(Settings(data_dir=tmp_path, database_url=target_url))
    assert rounds > 3
    assert copied["messages"] == MESSAGES + 4
    assert not await target.read(is_unfinished)


async def test_a_target_in_use_and_the_half_of_another_are_refused(source: Database, target: Database) -> None:
    await target.write(lambda connection: connection.execute(insert(schema.installation).values(name="secret", value="x")))
    with pytest.raises(CopyError, match="the target is in use"):
        await copy(source, target, nobody)
    await target.write(lambda connection: connection.execute(insert(schema.installation).values(name="copy", value="another")))
    with pytest.raises(CopyError, match="a part of another installation"):
        await copy(source, target, nobody)
    with pytest.raises(CopyError, match="itself a copy"):
        await copy(target, source, nobody)


async def test_somebody_who_writes_meanwhile_is_noticed(source: Database, target: Database) -> None:
    class Meddler(Flimsy):
        """Changes a row of the source at every step of the copy."""

        async def write(self, transact: Callable[..., Any], *args: Any) -> Any:
            statement = schema.applications.update().values(name=f"changed, {self._writes} to go")
            await source.write(lambda connection: connection.execute(statement))
            return await super().write(transact, *args)

    meddler: Any = Meddler(target, 1000)
    with pytest.raises(CopyError, match="applications differs"):
        await copy(source, meddler, nobody)


async def test_a_store_that_was_never_served_has_nothing_to_copy(database: Database, target: Database) -> None:
    with pytest.raises(CopyError, match="never been served"):
        await copy(database, target, nobody)
    assert await target.read(lambda c: c.execute(select(func.count()).select_from(schema.installation)).scalar_one()) == 0
