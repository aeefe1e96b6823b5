"""Tests of upgrades from every earlier schema. The counts must stay right, and existing links, keys and tokens must work.

For the schema 0005 and later schemas, the test data are the rows of a new installation, without the tables and columns that the
schema does not have. This is possible because all later migrations only add tables and columns. For an older schema, the test
data are the rows of schema_0001.sql, migrated to that schema.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, MetaData, column, inspect, table, text
from sqlalchemy.types import TypeEngine

from shortener.container import Service, open_service
from shortener.conversions.parsing import ConversionReport
from shortener.model import Topic
from shortener.reporting import count_check, counts
from shortener.reporting.rollup_check import verify_rollups
from shortener.settings import Settings
from shortener.storage import migrate as module
from shortener.storage import new_database
from shortener.storage.migrate import migrate, steps, upgrade
from shortener.storage.migrations import HEAD
from shortener.storage.references import find_orphans
from shortener.storage.schema import deliveries, metadata
from tests.acceptance.process import PHONE
from tests.conftest import NOON, Clock, client_of, new_postgresql_database
from tests.factory import rows
from tests.storage.old_installation import OLD_KEY, OLD_SECRET, difference, fill_old

EARLIER = [revision for revision, _ in steps(None) if revision != HEAD]
#: The first schema whose rows have the present form. Migration 0004 moved the clicks. All later migrations only add columns and
#: tables.
FIRST_OF_THIS_FORM = "0005"
#: `make test-fast` upgrades an installation from these schemas: from the first one (all migrations), from the first one of the
#: present form, and from the last one before HEAD (only the newest migration). Each upgrade runs all later migrations, so a fault
#: in any migration stops one of these upgrades.
QUICK = {EARLIER[0], FIRST_OF_THIS_FORM, EARLIER[-1]}
#: Metrics as regular expressions. The key is the first schema whose code counted these metrics.
COUNTED_SINCE = {"0008": r"conversions:.*|value:.*:.*", "0011": r"links|clicked_links", "0023": r"converted_messages"}


@dataclass
class Installation:
    """The rows of an installation by table, and values for requests: an API key, and a message without clicks with its link.

    `clicked` is the number of clicked messages. `converted` is the number of messages with conversions."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    api_key: str = ""
    code: str = ""
    message_id: str = ""
    destination: str = ""
    clicked: int = 0
    converted: int = 0


async def _build(folder: Path) -> Installation:
    """Create an installation with the current schema and with a row in as many tables as possible. Return its rows."""
    clock, url = Clock(), f"sqlite:///{folder}/shortener.db"
    settings = Settings(data_dir=folder, database_url=url, secret=OLD_SECRET, allow_private_targets=True)
    service = await open_service(settings, clock=clock)
    try:
        service.recorder.start()
        assert service.first_credentials is not None
        key, token = service.first_credentials.api_key, service.first_credentials.tracker_token
        async with client_of(service, {"X-API-Key": key}) as api, client_of(service, {"User-Agent": PHONE}) as phone:

            async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
                response = await api.post(path, json=body)
                assert response.status_code < 300, response.text
                answer: dict[str, Any] = response.json()
                return answer

            tracker = {
                "name": "mine",
                "url": "http://127.0.0.1:9/",
                "events": ["state", "conversion"],
                "secret": "a secret of at least 24 bytes",
            }
            await post("/api/v1/trackers", tracker)
            await post("/api/v1/keys", {"name": "second"})
            await post("/api/v1/postback-keys", {"name": "network"})
            await post("/api/v1/gateways", {"name": "test", "kind": "simulator"})
            await post("/api/v1/opt-outs", {"phone": "+14085550111"})
            texts = {"body": 'a #track("https://shop.example/a") b #trackurl("https://shop.example/b","two")', "campaign": "spring"}
            clicked, fresh = [
                (await post("/api/v1/rewrite", {"to": to, **texts}))["messages"][0] for to in ("+14085550100", "+14085550101")
            ]
            await post("/api/v1/sms/status", {"message_id": clicked["message_id"], "state": "DELIVERED"})
            clock.forward(minutes=1)
            for link in clicked["links"]:
                assert (await phone.get(f"/{link['code']}")).status_code == 302
            async with client_of(service, {"X-Api-Token": token}) as affiliate:
                report = {"message_id": clicked["message_id"], "action": "deposit", "value": "25.00", "currency": "EUR"}
                assert (await affiliate.get("/api/v1/track", params=report)).status_code == 200
                await affiliate.get("/api/v1/track", params=report | {"message_id": "unknown"})
        while await service.fanout.step():
            pass
        await service.database.write(counts.fold)
        return Installation(
            await service.database.read(_rows), key, fresh["links"][0]["code"], fresh["message_id"], "https://shop.example/a", 1, 1
        )
    finally:
        await service.close(grace=1)


def _rows(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """Return all rows in the form in which the database stores them. The column types do not convert the values."""
    stored = MetaData()
    stored.reflect(connection)
    return {
        table.name: [dict(row) for row in connection.exec_driver_sql(f"SELECT * FROM {table.name}").mappings()]
        for table in stored.sorted_tables
        if table.name in metadata.tables
    }


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("current")
    installation = asyncio.run(_build(folder))
    shutil.rmtree(folder)
    return installation


def _fill(connection: Connection, revision: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Create the schema of a revision and insert the rows. Leave out tables and columns that the schema does not have."""
    upgrade(connection, revision)
    there = inspect(connection)
    tables = set(there.get_table_names())
    # insert the rows of a table after the rows to which they refer
    for name in (name for name in metadata.tables if name in tables):
        types = {column["name"]: column["type"] for column in there.get_columns(name)}
        _insert(connection, name, types, revision, rows.get(name, []))
    if connection.dialect.name == "postgresql":
        for name in sorted(tables):
            has_id = any(column["name"] == "id" for column in there.get_columns(name))
            if has_id and connection.scalar(text(f"SELECT pg_get_serial_sequence('{name}', 'id')")):
                connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), 1000)"))


def _insert(
    connection: Connection, name: str, types: dict[str, TypeEngine[Any]], revision: str, rows: list[dict[str, Any]]
) -> None:
    target = table(name, *(column(column_name, kind) for column_name, kind in types.items()))
    connection.execute(target.delete())
    unknown = re.compile("|".join(metrics for first, metrics in COUNTED_SINCE.items() if revision < first))
    inserted = []
    for row in rows:
        if name == "counts" and unknown.fullmatch(row["metric"]):
            continue
        if name == "rollups":
            amounts = {metric: amount for metric, amount in orjson.loads(row["data"]).items() if not unknown.fullmatch(metric)}
            row = row | {"data": orjson.dumps(amounts).decode()}
        inserted.append({key: _convert(row[key], kind.python_type) for key, kind in types.items() if key in row})
    if inserted:
        connection.execute(target.insert(), inserted)


def _convert(value: Any, kind: type) -> Any:
    """Convert a value that SQLite stored to the Python type that a PostgreSQL column requires."""
    return bool(value) if kind is bool and value is not None else value


async def _drifts(service: Service, now: Clock) -> list[Any]:
    begin, end = NOON.replace(year=2026, month=1), now.forward(minutes=1)
    found: list[Any] = list(await service.database.read(count_check.verify, begin, end))
    return [*found, *await service.database.read(verify_rollups, begin, end)]


async def _deliveries_of_conversions(service: Service) -> int:
    return len([row for row in await rows(service.database, deliveries) if row.topic == Topic.CONVERSION])


@pytest.mark.parametrize(
    ("revision", "engine"),
    [
        *(pytest.param(revision, "sqlite", marks=[] if revision in QUICK else pytest.mark.slow) for revision in EARLIER),
        *((revision, "postgresql") for revision in EARLIER[::5]),
    ],
)
async def test_an_installation_of_every_earlier_schema_is_upgraded_and_its_old_links_work(
    revision: str, engine: str, current: Installation, tmp_path: Path, clock: Clock, request: pytest.FixtureRequest
) -> None:
    if engine == "sqlite":
        url = f"sqlite:///{tmp_path / 'shortener.db'}"
    else:
        url = await new_postgresql_database(request.getfixturevalue("postgresql"), None)
    if revision < FIRST_OF_THIS_FORM:
        had = Installation({}, OLD_KEY, "GaLLwBkLqG", "fresh", "https://shop.example/d", 2, 2)
        await module._run_on(url, partial(fill_old, revision=revision))
    else:
        had = current
        await module._run_on(url, partial(_fill, revision=revision, rows=current.rows))

    assert await migrate(url) == (revision, HEAD)
    # The text is equal only if the schema is the same in every detail, so no other comparison is necessary.
    if engine == "sqlite":
        assert await module._run_on(url, new_database.dump) == new_database.SQLITE_FILE.read_text()
    else:
        assert await module._run_on(url, difference) == []
    clock.forward(minutes=5)
    settings = Settings(data_dir=tmp_path, database_url=url, secret=OLD_SECRET, allow_private_targets=True)
    service = await open_service(settings, clock=clock)
    try:
        service.recorder.start()
        assert service.first_credentials is None, "the applications exist already"
        assert "\n".join(map(str, await _drifts(service, clock))) == ""
        async with client_of(service, {"User-Agent": PHONE}) as phone, client_of(service, {"X-API-Key": had.api_key}) as pipeline:
            behind = (await pipeline.get("/api/v1/sms/stats")).json()
            is_counted = revision >= "0023"  # from this revision on, an installation already has rows of first conversions
            assert (behind["complete"], behind["converted_messages"]) == ((True, had.converted) if is_counted else (False, 0))
            await service.database.write(counts.fold)
            await service.jobs.table["first_conversions"].step()
            caught_up = (await pipeline.get("/api/v1/sms/stats")).json()
            assert (caught_up["complete"], caught_up["converted_messages"]) == (True, had.converted)
            before = (await pipeline.get("/api/v1/sms/stats")).json()["clicked_messages"]
            answer = await phone.get(f"/{had.code}")
            assert (answer.status_code, answer.headers.get("Location")) == (302, had.destination)
            status = (await pipeline.get(f"/api/v1/sms/status/{had.message_id}")).json()
            assert status["state"] == "CLICKTHRU"
            after = (await pipeline.get("/api/v1/sms/stats")).json()["clicked_messages"]
            assert (before, after) == (had.clicked, had.clicked + 1)
            new = {"to": "+14085550177", "body": 'c #track("https://shop.example/new")'}
            message = (await pipeline.post("/api/v1/rewrite", json=new)).json()["messages"][0]
            code = message["links"][0]["code"]
            assert (await phone.get(f"/{code}")).status_code == 302
        # These two checks take most of the time of the test. They examine what the upgrade and all steps above have written.
        assert "\n".join(map(str, [*await _drifts(service, clock), *await find_orphans(service.database)])) == ""
        trackers = await service.trackers.all()
        assert {(one.conversion_actions, one.conversion_dispositions) for one in trackers} <= {(None, None)}
        await service.fanout.flush()
        before = await _deliveries_of_conversions(service)
        await service.conversions.ingest(1, ConversionReport(clock(), message_id=message["message_id"]))
        await service.fanout.flush()
        subscribed = [one for one in trackers if one.enabled and one.application_id == 1 and "conversion" in one.events]
        assert await _deliveries_of_conversions(service) - before == len(subscribed), "no filter is set"
    finally:
        await service.close(grace=1)
