"""Helpers for tests that create links and record hits on them."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, select, text

from shortener.accounts.administration import update_application
from shortener.accounts.audit import Actor
from shortener.clicks import user_agents
from shortener.clicks.link_changes import find_changeable, parse_changes, refresh_cache, write_changes
from shortener.clicks.recorder import Recorder
from shortener.clicks.resolver import Hit
from shortener.clicks.throttle import WINDOW_SECONDS, Throttle
from shortener.container import Service
from shortener.errors import StoreUnavailable
from shortener.messages.rewrite_item import RewriteItem
from shortener.model import Topic, Verdict
from shortener.storage import schema

TO = "+14085550100"
#: The headers of a request from a phone's browser.
PHONE_HEADERS = {
    "User-Agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
}


async def create_codes(service: Service, body: str = 'see #track("https://x.example/a")', **more: Any) -> list[str]:
    """Rewrite one message of the default application and return the codes of its short links. `more` contains fields of
    `RewriteItem`."""
    application = service.directory.applications()[0]
    responses = await service.rewriter.rewrite(application, [RewriteItem((TO,), body, **more)])
    return [link["code"] for link in responses[0]["links"]]


async def create_link(client: httpx.AsyncClient, url: str = "https://x.example/a?b=1&c=%20#f", **more: Any) -> str:
    """Rewrite one message through the API and return the path of its short link. `more` contains fields of the API request."""
    response = await client.post("/api/v1/rewrite", json={"to": TO, "body": f'#track("{url}")', **more})
    return "/" + str(response.json()["messages"][0]["links"][0]["code"])


def make_hit(service: Service, code: str, verdict: Verdict = Verdict.HUMAN, **more: Any) -> Hit:
    """Return a new hit on the link with `code`, at the service's current time. `more` contains other fields of `Hit`."""
    values: dict[str, Any] = {
        "id": service.ids(),
        "code": code,
        "domain_id": None,
        "at": service.now_ms(),
        "verdict": verdict,
        "rule": "test",
        "address": "192.0.2.0",
        "user_agent": "Phone",
    }
    return Hit(**values | more)


async def fetch_rows(service: Service, table: Any) -> list[Any]:
    """Return all rows of a table, in order of their ids."""
    return list(await service.database.read(lambda connection: connection.execute(select(table).order_by(table.c.id)).all()))


async def count_state_events(service: Service) -> Counter[int]:
    """Return the number of events with the topic STATE for each message, by row id of the message."""
    return Counter(event.message_id for event in await fetch_rows(service, schema.events) if event.topics & Topic.STATE)


async def change_settings(service: Service, **settings: Any) -> None:
    """Change settings of the default application."""
    await service.database.write(update_application, 1, settings, service.clock())
    await service.directory.refresh()


class _UnloadedParser:
    """A parser of user agents. It fails unless `load_expressions` is the first caller."""

    def __init__(self, parse: Any) -> None:
        self._parse = parse
        self._is_loaded = False

    def cache_info(self) -> SimpleNamespace:
        return SimpleNamespace(currsize=int(self._is_loaded))

    def __call__(self, agent: str) -> Any:
        assert self._is_loaded or agent == "", "the transaction loads the expressions of ua-parser"
        self._is_loaded = True
        return self._parse(agent)


def forget_expressions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process behave as if it had parsed no user agent yet. A test then fails if a user agent is parsed before
    `load_expressions` is awaited."""
    monkeypatch.setattr(user_agents, "_device_of", _UnloadedParser(user_agents._device_of))


class UnreliableDatabase:
    """The database of the service. It rejects writes while `refuse_writes` is true, and reads while `refuse_reads` is true.

    The next `lose_results` writes commit and then raise StoreUnavailable, as if the connection broke after the commit."""

    def __init__(self, service: Service) -> None:
        self._database = service.database
        self.refuse_writes = False
        self.refuse_reads = False
        self.lose_results = 0
        self.writes = 0

    async def write(self, transact: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.writes += 1
        if self.refuse_writes:
            raise StoreUnavailable("the test rejects writes")
        result = await self._database.write(transact, *args, **kwargs)
        if self.lose_results:
            self.lose_results -= 1
            raise StoreUnavailable("the connection broke after the commit")
        return result

    async def read(self, query: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.refuse_reads:
            raise StoreUnavailable("the test rejects reads")
        return await self._database.read(query, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


async def unreliable_recorder(service: Service, **more: Any) -> tuple[UnreliableDatabase, Recorder]:
    """Return a database that can fail, and a running recorder that uses it. `more` contains arguments of `Recorder`. The caller
    must stop the recorder."""
    database = UnreliableDatabase(service)
    values: dict[str, Any] = {"deadline": 0.1, "waiting_limit": 100, "on_events": lambda: None} | more
    recorder = Recorder(database, service.ids, service.click_ids, service.directory, **values)
    recorder.start()
    return database, recorder


@asynccontextmanager
async def hits_table_away(service: Service) -> AsyncIterator[None]:
    """Rename the table `hits` while the block runs. The database still works, but it rejects every hit, as it may during a
    migration."""
    await service.database.write(lambda connection: connection.execute(text("ALTER TABLE hits RENAME TO hits_away")))
    try:
        yield
    finally:
        await service.database.write(lambda connection: connection.execute(text("ALTER TABLE hits_away RENAME TO hits")))


async def reject_hits(service: Service, rule: str) -> None:
    """Make the database reject each hit whose classification rule is `rule`."""
    statement = {
        "sqlite": f"CREATE TRIGGER rejected BEFORE INSERT ON hits WHEN NEW.rule = '{rule}' "
        "BEGIN SELECT RAISE(ABORT, 'rejected'); END",
        "postgresql": f"ALTER TABLE hits ADD CONSTRAINT rejected CHECK (rule <> '{rule}')",
    }[service.database.dialect]
    await service.database.write(lambda connection: connection.execute(text(statement)))


async def change_link(service: Service, code: str, requested: dict[str, Any]) -> None:
    """Change a link as the API does."""
    application = service.directory.application(1)
    assert application
    changes = parse_changes(requested, application, service.link_hosts, service.clock())

    def write(connection: Connection) -> None:
        rows = [find_changeable(connection, code)]
        write_changes(connection, rows, changes, actor=Actor(name="test"), now=service.clock(), ids=service.ids)

    await service.cache.invalidate([code])
    await service.database.write(write)
    await refresh_cache(service.database, service.cache, [code])


class Hits:
    """A fake counter of hits with a fake clock. The test changes both."""

    def __init__(self) -> None:
        self.count = 0
        self.now = 0.0
        self.waited = 0.0  # the sum of the seconds for which clients have waited
        self.throttle = Throttle(lambda: self.count, lambda: self.waited, lambda: self.now)

    def arrive(self, count: float, seconds: float = WINDOW_SECONDS, *, clients: float = 1) -> bool:
        self.count += int(count)
        self.waited += clients * seconds  # the number `clients` of clients waits during all of these seconds
        self.now += seconds
        return self.throttle.is_busy
