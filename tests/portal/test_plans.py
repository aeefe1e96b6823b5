"""The query plans of all statements that the pages of the portal execute.

Each page is visited with the traffic of a demo installation. The database then explains every statement that the visit executed.
No plan may read a complete table, or a complete index, if the table grows with the messages of an installation.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from shortener.accounts.audit import COMMAND_LINE, AuditWriter
from shortener.cli.demo_traffic import DemoClock, fill, start_of_traffic
from shortener.container import Service, open_service
from shortener.delivery.replays import start_replay
from shortener.ids import REPLAY_IDS, encode
from shortener.model import Topic
from shortener.outbox.events import encode_event_id
from shortener.portal.live_feed import read_rows
from shortener.portal.operators import Role
from shortener.settings import Settings
from shortener.storage import raw_sql, schema
from shortener.storage.database import Database
from tests.conftest import NOON, client_of
from tests.portal.conftest import SAME_ORIGIN, accept, invite
from tests.portal.visited_pages import unvisited_pages
from tests.receiver import Receiver

#: Tables whose size does not depend on the number of messages. All other tables grow.
SMALL_TABLES = {
    "installation",
    "applications",
    "domains",
    "blocked_hosts",
    "api_keys",
    "tracker_tokens",
    "postback_keys",
    "trackers",
    "gateways",
    "node_leases",
    "processes",
    "delivery_processes",
    "operators",
    "operator_roles",
    "operator_invitations",
    "operator_sessions",
    "operator_recovery_codes",
    "sign_in_failures",
    "count_groups",
    "tallies",
    "prices",
    "balances",
    "conversion_actions",
    "link_sets",
    "erasure_repeats",
}
GROWING_TABLES = set(schema.messages.metadata.tables) - SMALL_TABLES

#: Every page, with each filter for which the page executes other statements. {message} and {code} are replaced by those of a
#: message that was clicked.
PATHS = (
    "/portal/",
    "/portal/{app}/",
    "/portal/{app}/?period=24h",
    "/portal/{app}/?period=365d&campaign=autumn-sale&basis=sent&metric=messages",
    "/portal/1/campaigns",
    "/portal/1/campaigns?compare=order-updates&compare=autumn-sale",
    "/portal/{app}/messages",
    "/portal/{app}/messages?campaign=autumn-sale&country=DE&metric=delivered",
    "/portal/{app}/messages?metric=failed",
    "/portal/{app}/messages?metric=converted_messages&basis=sent",
    "/portal/{app}/messages?state=FAILED",
    "/portal/{app}/messages?to=%2B4915123456789",
    "/portal/{app}/messages.csv",
    "/portal/{app}/clicks?metric=clicks",
    "/portal/{app}/clicks?metric=suspected_hits",
    "/portal/{app}/clicks?metric=clicked_messages&basis=sent",
    "/portal/{app}/clicks?metric=clicked_links&campaign=autumn-sale",
    "/portal/{app}/clicks.csv",
    "/portal/{app}/conversions",
    "/portal/{app}/conversions?metric=conversions&campaign=autumn-sale",
    "/portal/{app}/conversions/refused",
    "/portal/{app}/live",
    "/portal/1/trackers",
    "/portal/1/gateways",
    "/portal/1/gateways.csv",
    "/portal/{app}/sends",
    "/portal/{app}/sends?state=pending",
    "/portal/{app}/sends?state=held&gateway=1",
    "/portal/{app}/sends?state=sent&gateway=1&period=24h",
    "/portal/{app}/sends?state=doubtful",
    "/portal/{app}/sends.csv",
    "/portal/1/deliveries",
    "/portal/1/deliveries?status=dead",
    "/portal/1/deliveries?tracker={tracker}",
    "/portal/1/deliveries?tracker={tracker}&status=dead",
    "/portal/1/deliveries?replay={replay}&status=delivered",
    "/portal/1/deliveries?replay={replay}&status=dead",
    "/portal/1/deliveries?replay={replay}&status=pending",
    "/portal/1/deliveries.csv",
    "/portal/1/deliveries/replays/new?tracker={tracker}",
    "/portal/1/deliveries/replays/{replay}",
    "/portal/1/receiver",
    "/portal/1/keys",
    "/portal/1/domains",
    "/portal/1/settings",
    "/portal/1/privacy",
    "/portal/1/trackers/new",
    "/portal/1/trackers/{tracker}/edit",
    "/portal/admin/applications",
    "/portal/1/campaigns/autumn-sale",
    "/portal/1/messages/{message}",
    "/portal/1/links",
    "/portal/1/links?campaign=autumn-sale",
    "/portal/1/links?clicked=1",
    "/portal/1/links/{code}",
    "/portal/1/trackers/{tracker}",
    "/portal/1/deliveries/{delivery}",
    "/portal/1/try",
    "/portal/search?q={message}",
    "/portal/search?q={code}",
    "/portal/search?q=%2B4915123456789",
    "/portal/search?q=autumn-sale",
    "/portal/search?q={click}",
    "/portal/search?q={event}",
    "/portal/me",
    "/portal/me/second-factor",
    "/portal/admin/system",
    "/portal/admin/operators",
    "/portal/admin/operators/1",
    "/portal/admin/audit",
)
#: The pages that PATHS leaves out. Each of them needs no session, returns a stream, or executes no statement.
NOT_VISITED = {
    "/portal",
    "/portal/signin",
    "/portal/signin/code",
    "/portal/signout",
    "/portal/welcome",
    "/portal/confirm",
    "/portal/open/{signed}",
    "/portal/{app}/live/stream",
    "/portal/{app}/domains/{host}",  # this page executes no statement, because the domains are in memory
}


@dataclass
class Recorded:
    """The SQL statements of all pages, without repetitions. Each has the parameters and the page of its first execution."""

    statements: dict[str, tuple[Any, str]] = field(default_factory=dict)
    page: str = ""


@contextmanager
def recorded() -> Iterator[Recorded]:
    """Record every statement that any connection executes."""
    found = Recorded()

    def record(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        first_word = statement.lstrip("( \n").split(None, 1)[0].upper()
        if first_word in ("SELECT", "WITH", "UPDATE", "DELETE"):
            found.statements.setdefault(statement, (parameters[0] if many else parameters, found.page))

    def record_and_execute(connection: Connection, statement: str, *parameters: object) -> sqlite3.Cursor:
        record(connection, None, statement, parameters, None, False)
        return execute(connection, statement, *parameters)

    execute = raw_sql.execute  # this function executes the statements that bypass SQLAlchemy
    event.listen(Engine, "before_cursor_execute", record)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(raw_sql, "execute", record_and_execute)
            yield found
    finally:
        event.remove(Engine, "before_cursor_execute", record)


@pytest.fixture
async def demo(store_url: str, tmp_path: Path, receiver: Receiver) -> AsyncIterator[Service]:
    """A service with demo traffic, a tracker, deliveries with attempts, and a message that waits for a gateway which fails."""
    clock = DemoClock(start_of_traffic(NOON))
    service = await open_service(Settings(data_dir=tmp_path, database_url=store_url, allow_private_targets=True), clock=clock)
    service.recorder.start()
    credentials = service.first_credentials
    assert credentials is not None
    async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
        created = await client.post("/api/v1/trackers", json={"url": receiver.url(), "events": ["click"]})
        assert created.status_code == 201, created.text
        gateway = {"name": "gw", "preset": "plain", "options": {"url": "http://127.0.0.1:9/"}}
        assert (await client.post("/api/v1/gateways", json=gateway)).status_code == 201
    clock.now = NOON
    await fill(service, clock, credentials.api_key, credentials.tracker_token, messages=40)
    async with client_of(service, {"X-API-Key": credentials.api_key}) as client:
        message = {"to": "+4915123456789", "body": "x", "gateway": "gw"}
        assert (await client.post("/api/v1/rewrite", json=message)).status_code == 200
    await service.gateway_dispatcher.flush()
    await service.fanout.flush()
    await service.dispatcher.flush()
    await _replay(service)
    yield service
    await service.close(grace=1)


async def _replay(service: Service) -> None:
    """Make a delivery of the tracker dead, and start a replay."""
    await service.database.write(
        lambda connection: (
            connection.exec_driver_sql(
                "UPDATE deliveries SET status = 2 WHERE id = (SELECT max(id) FROM deliveries WHERE tracker_id = 1)"
            )
            and None
        )
    )
    await start_replay(service.database, AuditWriter(COMMAND_LINE, service.ids), 1, 1, None, None, NOON)


def _ids(connection: Connection, service: Service) -> dict[str, str]:
    """Return the values of the placeholders in PATHS."""
    message_id, code, hit_id = connection.exec_driver_sql(
        "SELECT messages.message_id, links.code, hits.id FROM hits JOIN links ON links.id = hits.link_id"
        " JOIN messages ON messages.id = links.message_id JOIN first_clicks ON first_clicks.id = links.message_id LIMIT 1"
    ).one()
    (replay_id,) = connection.exec_driver_sql("SELECT id FROM replays").one()
    delivery_id = connection.exec_driver_sql("SELECT delivery_id FROM attempts LIMIT 1").scalar_one()
    event_id, topics = connection.exec_driver_sql("SELECT id, topics FROM events WHERE hit_id IS NOT NULL LIMIT 1").one()
    (topic, *_) = Topic(topics)
    return {
        "message": message_id,
        "code": code,
        "click": service.click_ids.encode(hit_id),
        "delivery": encode(delivery_id),
        "tracker": "1",
        "replay": REPLAY_IDS.encode(replay_id),
        "event": encode_event_id(event_id, topic),
    }


def growing_tables_of_sqlite(plan: list[str], statement: str) -> list[str]:
    """Return the steps of a plan of SQLite that read a complete table or index."""
    steps = [step for step in plan if step.startswith("SCAN ")]
    return [step for step in steps if step.split()[1] in GROWING_TABLES | _aliases(statement)]


def _aliases(statement: str) -> set[str]:
    """Return the aliases that a statement uses for growing tables."""
    words = statement.replace(",", " , ").replace("(", " ( ").replace(")", " ) ").split()
    return {
        after
        for table, keyword, after in zip(words, words[1:], words[2:], strict=False)
        if table in GROWING_TABLES and keyword == "AS"
    }


def scans_of_postgresql(node: dict[str, Any], outer_table: str = "", *, is_limited: bool = False) -> Iterator[str]:
    """Yield the nodes of a PostgreSQL plan that read a complete table or index. The plan was created with the settings in
    `explain`.

    `is_limited` is true if the node ends after one row, such as the scan of an index for `max(id)`."""
    kind = node["Node Type"]
    table = node.get("Relation Name", outer_table)  # a bitmap node belongs to the table of its parent node
    if table in GROWING_TABLES:
        if kind == "Seq Scan":
            yield f"Seq Scan on {table} {node.get('Filter', '')}"
        elif is_limited and kind in ("Index Scan", "Index Only Scan") and "Filter" not in node:
            return
        elif kind in ("Index Scan", "Index Only Scan", "Bitmap Index Scan") and "Index Cond" not in node:
            yield f"{kind} of {node['Index Name']} without a condition {node.get('Filter', '')}"
    for inner in node.get("Plans", ()):
        yield from scans_of_postgresql(inner, table, is_limited=kind == "Limit" and node["Plan Rows"] == 1)


def explain(connection: Connection, found: Recorded) -> list[str]:
    """Return one line for each step of a plan that reads a complete growing table."""
    problems = []
    is_sqlite = connection.dialect.name == "sqlite"
    if not is_sqlite:
        # PostgreSQL reads small tables completely. With these settings, it uses an index if the statement allows it.
        for method in ("seqscan", "hashjoin", "mergejoin"):
            connection.exec_driver_sql(f"SET LOCAL enable_{method} = off")
    for statement, (parameters, page) in found.statements.items():
        if is_sqlite:
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            steps = growing_tables_of_sqlite(plan, statement)
        else:
            explained = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
            (plan,) = json.loads(explained) if isinstance(explained, str) else explained
            steps = list(scans_of_postgresql(plan["Plan"]))
        problems += [f"{page}: {step}\n    {' '.join(statement.split())}" for step in steps]
    return problems


@pytest.mark.slow
async def test_no_sql_statement_of_a_portal_page_reads_a_complete_table_that_grows(demo: Service) -> None:
    service = demo
    async with client_of(service, {**SAME_ORIGIN}) as browser:
        await accept(browser, await invite(service, "Ada", Role.ADMIN, 0))
        ids = await service.database.read(_ids, service)
        with recorded() as found:
            for path in PATHS:
                for app in ("1", "all") if "{app}" in path else ("1",):
                    found.page = path.format(app=app, **ids)
                    response = await browser.get(found.page)
                    assert response.status_code in (200, 303), found.page
            found.page = "the feed of the live page"
            await service.database.read(read_rows, NOON - timedelta(seconds=15), {1})
    assert len(found.statements) > 60
    assert await service.database.read(explain, found) == []


async def test_the_query_plan_check_finds_statements_that_read_a_complete_table(database: Database) -> None:
    bad = (
        "SELECT hits.id FROM hits WHERE hits.flags = 3",
        "SELECT m.id FROM messages AS m ORDER BY m.id",
        "SELECT count(*) FROM links JOIN messages ON messages.id = links.message_id",
    )
    good = ("SELECT m.id FROM messages AS m WHERE m.id >= 7 ORDER BY m.id", "SELECT applications.id FROM applications")
    found = Recorded(dict.fromkeys((*bad, *good), ((), "page")))
    problems = await database.read(explain, found)
    assert [problem.partition("\n    ")[2] for problem in problems] == list(bad)


def test_the_test_of_the_query_plans_visits_every_portal_page() -> None:
    assert unvisited_pages(PATHS, NOT_VISITED) == []
