"""Tests of copies of an installation from SQLite to PostgreSQL and back, with and without interruptions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, func, insert, select

from shortener.accounts.administration import create_application
from shortener.container import Service, open_service
from shortener.errors import StoreUnavailable
from shortener.messages.rewrite_item import RewriteItem
from shortener.reporting import count_check, counts
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.copy import BATCH_ROWS, CopyError, Progress, copy, is_unfinished
from shortener.storage.database import Database
from shortener.storage.migrate import SchemaMismatch, migrate
from shortener.storage.open import open_database
from tests.clicks.helpers import create_codes as send
from tests.clicks.helpers import make_hit as hit
from tests.conftest import NOON, Clock, MakeService, new_postgresql_database
from tests.rows import Rows

MESSAGES = BATCH_ROWS + 500  # The number of messages. They fill more than one batch of a copy.


async def write_rows(service: Service) -> None:
    """Write rows to each table that the test compares."""
    (code,) = await send(service)
    await service.recorder.record(hit(service, code))
    await service.recorder.record(hit(service, code))
    application = service.directory.applications()[0]
    outgoing = RewriteItem(to=("+14085550101",), body="ü\u2028\U0001f600 plain", message_ids=("m-1",), metadata={"a": ["ß", None]})
    await service.rewriter.rewrite(application, [outgoing], idempotency_key="key")
    await service.database.write(many, application.id)
    await service.database.write(counts.fold)
    (code,) = await send(service)
    await service.recorder.record(hit(service, code))  # This click leaves a count delta that is not added to the counts yet.


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
    """The source database: a service has run on it and has written its rows."""
    service = await make_service()
    await write_rows(service)
    await service.recorder.flush()
    return service.database


@pytest.fixture
async def target_url(store_url: str, postgresql: str, postgresql_template: str, tmp_path: Path) -> str:
    """The URL of an empty database with the schema. It has the other engine than the source."""
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


def ignore(progress: Progress) -> None:
    return


async def test_a_copy_contains_all_rows_and_the_service_continues_on_the_target_database(
    source: Database, target: Database, target_url: str, tmp_path: Path, clock: Clock
) -> None:
    steps: list[Progress] = []
    copied = await copy(source, target, steps.append)
    assert orjson.loads(orjson.dumps(copied)) == copied, "`shortener copy --json` writes this"
    assert copied["messages"] == MESSAGES + 4
    assert copied["hits"] == 4
    assert min(copied[name] for name in ("links", "events", "counts", "tallies", "installation", "idempotency", "api_keys")) > 0
    last = [one for one in steps if one.table == "messages"]
    assert [(one.doing, one.done) for one in last] == [
        ("copied", BATCH_ROWS),
        ("copied", MESSAGES + 4),
        ("compared", BATCH_ROWS),
        ("compared", MESSAGES + 4),
        ("compared", BATCH_ROWS),
        ("compared", MESSAGES + 4),
    ]
    for database in (source, target):
        await database.write(counts.fold)
        assert await database.read(count_check.verify, NOON - timedelta(hours=1), NOON + timedelta(hours=1)) == []
    await target.close()

    # The target service uses the same folder, and therefore the same secret.
    settings = Settings(data_dir=tmp_path, database_url=target_url)
    service = await open_service(settings, clock=clock)
    service.recorder.start()
    try:
        assert service.first_credentials is None
        (code,) = await service.database.read(lambda c: c.execute(select(schema.links.c.code).limit(1)).scalars().all())
        assert (await service.recorder.record(hit(service, code))).location
        created = await service.database.write(create_application, "another", NOON)
        assert created.application_id > 1, "the ids continue after the copied ones"
    finally:
        await service.close(1)


class BreakingDatabase:
    """A database that becomes unavailable after `writes` transactions."""

    def __init__(self, database: Database, writes: int) -> None:
        self._database = database
        self._writes = writes
        self.read = database.read

    async def write(self, transact: Callable[..., Any], *args: Any) -> Any:
        self._writes -= 1
        if self._writes < 0:
            raise StoreUnavailable("cut off")
        return await self._database.write(transact, *args)


async def test_an_interrupted_copy_can_be_continued_and_the_service_does_not_start_on_an_incomplete_copy(
    source: Database, target: Database, target_url: str, tmp_path: Path
) -> None:
    interruptions = 0
    while True:
        try:
            breaking: Any = BreakingDatabase(target, writes=4)
            copied = await copy(source, breaking, ignore)
            break
        except StoreUnavailable:
            interruptions += 1
            assert await target.read(is_unfinished)
            # With SQLite, the service would not start for another reason: the file is already in use.
            if interruptions == 2 and target.dialect == "postgresql":
                with pytest.raises(SchemaMismatch, match="shortener copy"):
                    await open_service(Settings(data_dir=tmp_path, database_url=target_url))
    assert interruptions > 3
    assert copied["messages"] == MESSAGES + 4
    assert not await target.read(is_unfinished)


async def test_a_copy_that_fails_raises_its_error_only_after_the_read_of_the_source_has_ended(
    source: Database, target: Database
) -> None:
    """The copy reads the next rows while the target writes the current ones. After an error, the command closes both databases,
    so no read may be running."""
    running = 0

    class Source:
        async def read(self, query: Callable[..., Any], *args: Any) -> Any:
            nonlocal running
            running += 1
            try:
                return await source.read(query, *args)
            finally:
                running -= 1

    reading: Any = Source()
    breaking: Any = BreakingDatabase(target, writes=2)
    with pytest.raises(StoreUnavailable, match="cut off"):
        await copy(reading, breaking, ignore)
    assert running == 0


async def test_a_copy_to_a_database_of_another_installation_is_rejected(source: Database, target: Database) -> None:
    await target.write(lambda connection: connection.execute(insert(schema.installation).values(name="secret", value="x")))
    with pytest.raises(CopyError, match="already contains an installation"):
        await copy(source, target, ignore)
    await target.write(lambda connection: connection.execute(insert(schema.installation).values(name="copy", value="another")))
    with pytest.raises(CopyError, match="incomplete copy of another installation"):
        await copy(source, target, ignore)
    with pytest.raises(CopyError, match="incomplete copy"):
        await copy(target, source, ignore)


async def test_a_change_of_the_source_database_during_a_copy_is_reported(source: Database, target: Database) -> None:
    class ChangingSource(BreakingDatabase):
        """A target database. In each of its transactions, a row of the source database changes."""

        async def write(self, transact: Callable[..., Any], *args: Any) -> Any:
            statement = schema.applications.update().values(name=f"changed, {self._writes} to go")
            await source.write(lambda connection: connection.execute(statement))
            return await super().write(transact, *args)

    changing: Any = ChangingSource(target, 1000)
    with pytest.raises(CopyError, match="rows of applications differ"):
        await copy(source, changing, ignore)


async def test_a_copy_from_a_database_that_no_server_has_used_is_rejected(database: Database, target: Database) -> None:
    with pytest.raises(CopyError, match="the source is empty"):
        await copy(database, target, ignore)
    assert await target.read(lambda c: c.execute(select(func.count()).select_from(schema.installation)).scalar_one()) == 0
