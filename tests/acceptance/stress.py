"""Mixed load on running servers: rewrites, clicks, conversions, reports, and changes of links and settings, all at the same time.

`MixedLoad` records which requests the servers acknowledged. `compare` compares them with what is stored and delivered. A request
without a response is uncertain: the servers may have processed it or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import orjson
from sqlalchemy import Connection

from shortener.storage.open import open_database
from tests.acceptance.endpoint import Endpoint
from tests.acceptance.nodes import crowd, metric, wait_until
from tests.acceptance.process import Server
from tests.rows import Rows

OLD_MESSAGES = 200
SETTINGS = {
    "PURGE_INTERVAL": "0.2",
    "PURGE_BATCH": "400",
    "MESSAGE_RETENTION_DAYS": "30",
    "DELIVERY_SCHEDULE": "0.1,0.5,1,1,1,1,1,1,1",
}
Query = Callable[[str], list[dict[str, Any]]]
HITS_BY_CODE = "SELECT l.code, count(*) AS hits FROM hits h JOIN links l ON l.id = h.link_id GROUP BY l.code"

Reply = tuple[int, Any]  # the status and the JSON body of a response


@dataclass
class Acknowledged:
    """The requests that the servers acknowledged, and the requests without a response, whose result is uncertain."""

    messages: dict[str, str] = field(default_factory=dict)  # the code of the link of each message, by message_id
    clicks: Counter[str] = field(default_factory=Counter)  # redirected clicks by code
    uncertain_clicks: Counter[str] = field(default_factory=Counter)
    conversions: dict[str, str] = field(default_factory=dict)  # the message_id by transaction_id
    uncertain_conversions: set[str] = field(default_factory=set)
    delivered: set[str] = field(default_factory=set)  # messages with an accepted delivery report
    # for each changed link, by code: all destinations that it may have now
    destinations: dict[str, set[str]] = field(default_factory=dict)
    settings: dict[str, set[Any]] = field(default_factory=dict)  # for each changed setting: all values that it may have now
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)  # the number of responses by kind of request and status


class MixedLoad:
    """Mixed load on the servers with the URLs `bases`. `api_key` and `tracker_token` are the credentials of their only
    application."""

    def __init__(self, bases: Sequence[str], api_key: str, tracker_token: str) -> None:
        self.done = Acknowledged()
        self._bases = list(bases)
        self._api = {"X-API-Key": api_key}
        self._tracker = {"X-Api-Token": tracker_token}
        self._chance = random.Random(11)
        self._numbers = iter(range(1, 1_000_000))
        self._is_over = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send all kinds of requests until the context ends."""
        self._is_over = False
        async with crowd(64) as session:
            actors: list[Callable[[aiohttp.ClientSession, int], Coroutine[Any, Any, None]]] = [
                *[self._rewrite] * 4,
                *[self._click] * 10,
                *[self._convert] * 3,
                *[self._report] * 2,
                *[self._change_link] * 2,
                *[self._change_setting] * 3,
            ]
            tasks = [asyncio.create_task(self._repeat(actor, session, number)) for number, actor in enumerate(actors)]
            try:
                yield
            finally:
                self._is_over = True
                await asyncio.gather(*tasks)

    async def _repeat(
        self, act: Callable[[aiohttp.ClientSession, int], Coroutine[Any, Any, None]], session: aiohttp.ClientSession, number: int
    ) -> None:
        while not self._is_over:
            await act(session, number)
            await asyncio.sleep(0.01)  # this client pauses before its next request

    async def _send(self, session: aiohttp.ClientSession, kind: str, method: str, path: str, **more: Any) -> Reply | None:
        """Send a request to one of the servers. Return None if the connection ended before the response arrived."""
        try:
            async with session.request(method, self._chance.choice(self._bases) + path, allow_redirects=False, **more) as answer:
                is_json = answer.content_type == "application/json"
                reply = answer.status, (await answer.json() if is_json else answer.headers.get("Location"))
        except (aiohttp.ClientError, TimeoutError):
            self.done.statuses[kind, 0] += 1
            await asyncio.sleep(0.05)  # the server may be restarting, so the connection can fail
            return None
        self.done.statuses[kind, reply[0]] += 1
        return reply

    def _known(self) -> tuple[str, str] | None:
        """Choose one of the acknowledged messages at random. Return its id and the code of its link."""
        if not self.done.messages:
            return None
        message = self._chance.choice(list(self.done.messages))
        return message, self.done.messages[message]

    async def _rewrite(self, session: aiohttp.ClientSession, number: int) -> None:
        ids = [f"m{next(self._numbers)}" for _ in range(3)]
        body = {
            "to": [f"+1408555{self._chance.randrange(10_000):04}" for _ in ids],
            "message_id": ids,
            "body": 'see #track("https://x.example/first")',
            "campaign": f"campaign {number % 3}",
        }
        for _ in range(3):  # if no response arrives, repeat the request with the same message ids, as a client may do
            reply = await self._send(session, "rewrite", "POST", "/api/v1/rewrite", json=body, headers=self._api)
            if reply is not None and reply[0] == 200:
                for message in reply[1]["messages"]:
                    code = message["links"][0]["code"]
                    assert self.done.messages.setdefault(message["message_id"], code) == code, "a repeat gets the same code"
                return

    async def _click(self, session: aiohttp.ClientSession, number: int) -> None:
        if (known := self._known()) is None:
            return
        _, code = known
        reply = await self._send(session, "click", "GET", f"/{code}")
        if reply is None:
            self.done.uncertain_clicks[code] += 1
        elif reply[0] == 302:
            self.done.clicks[code] += 1

    async def _convert(self, session: aiohttp.ClientSession, number: int) -> None:
        if (known := self._known()) is None:
            return
        transaction = f"t{next(self._numbers)}"
        parameters = {"message_id": known[0], "action": "sale", "transaction_id": transaction, "value": "1.50", "currency": "USD"}
        for _ in range(2):
            reply = await self._send(session, "track", "GET", "/api/v1/track", params=parameters, headers=self._tracker)
            if reply is not None and reply[0] == 200:
                self.done.conversions[transaction] = known[0]
                self.done.uncertain_conversions.discard(transaction)
                return
            self.done.uncertain_conversions.add(transaction)

    async def _report(self, session: aiohttp.ClientSession, number: int) -> None:
        if (known := self._known()) is None:
            return
        report = {"message_id": known[0], "state": "DELIVERED", "status": "DELIVRD", "reason_code": "000"}
        reply = await self._send(session, "report", "POST", "/api/v1/sms/status", json=report, headers=self._api)
        if reply is not None and reply[0] == 200:
            self.done.delivered.add(known[0])

    async def _change_link(self, session: aiohttp.ClientSession, number: int) -> None:
        """Change the destination of a link. Only one client changes this link."""
        codes = [code for code in self.done.messages.values() if sum(code.encode()) % 2 == number % 2]
        if not codes:
            return
        code, url = self._chance.choice(codes), f"https://x.example/{next(self._numbers)}"
        before = self.done.destinations.get(code, {"https://x.example/first"})
        self.done.destinations[code] = before | {url}
        reply = await self._send(session, "link", "PATCH", f"/api/v1/links/{code}", json={"url": url}, headers=self._api)
        if reply is not None and reply[0] == 200:
            self.done.destinations[code] = {url}
        elif reply is not None and reply[0] < 500:
            raise AssertionError(reply)

    async def _change_setting(self, session: aiohttp.ClientSession, number: int) -> None:
        """Change a setting of the application. Only one client changes this setting."""
        name = ("link_ttl_days", "max_recipients_per_address_minute", "min_seconds_after_sent")[number % 3]
        value = {"link_ttl_days": 90, "max_recipients_per_address_minute": 500_000, "min_seconds_after_sent": 0.001}[name]
        value += self._chance.randrange(9) if name == "link_ttl_days" else self._chance.randrange(9) * (value / 1000)
        value = int(value) if name != "min_seconds_after_sent" else value
        self.done.settings.setdefault(name, {None}).add(value)
        reply = await self._send(session, "settings", "PATCH", "/api/v1/application", json={name: value}, headers=self._api)
        if reply is not None and reply[0] == 200:
            self.done.settings[name] = {value}
        await asyncio.sleep(0.05)  # pause, because after each change every server reads all its accounts again


def add_old_messages(url: str) -> None:
    """Insert messages whose retention time is over, so that the purge has work during the load."""

    def fill(connection: Connection) -> None:
        rows = Rows(connection)
        for number in range(OLD_MESSAGES):
            rows.complete_message(datetime.now(UTC) - timedelta(days=200), message_id=f"old {number}")

    async def run() -> None:
        database = await open_database(url, owner=False)
        await database.write(fill)
        await database.close()

    asyncio.run(run())


def add_tracker(server: Server, endpoint: Endpoint) -> None:
    tracker = {"name": "all", "url": endpoint.url, "events": ["state", "click", "conversion"], "format": "json"}
    tracker["fields"] = ["event", "event_id", "message_id", "new_state"]
    with server.api() as client:
        assert client.post("/api/v1/trackers", json=tracker).status_code == 201


def wait_until_quiet(servers: list[Server], query: Query) -> None:
    def is_quiet() -> bool:
        (left,) = query(
            "SELECT (SELECT count(*) FROM deliveries WHERE status = 0) + (SELECT count(*) FROM tallies) AS work, "
            "(SELECT count(*) FROM events WHERE fanned_out = false) AS events, "
            "(SELECT count(*) FROM messages WHERE message_id LIKE 'old %') AS old"
        )
        left["hits in memory"] = sum(metric(server, "shortener_hits_unrecorded") for server in servers)
        remaining.update(left)
        return not any(left.values())

    remaining: dict[str, float] = {}
    with contextlib.suppress(AssertionError):
        wait_until(is_quiet, "some work is not done", patience=150)
    pending = query("SELECT * FROM deliveries WHERE status = 0 LIMIT 3") + query(
        "SELECT * FROM events WHERE fanned_out = false LIMIT 3"
    )
    assert not any(remaining.values()), (remaining, pending)


def compare(load: MixedLoad, query: Query, endpoint: Endpoint) -> None:
    """Assert that all acknowledged requests are stored, and that their events are delivered."""
    done = load.done
    links = {row["code"]: row for row in query("SELECT code, url, message_id FROM links")}
    messages = {row["message_id"]: row for row in query("SELECT id, message_id, delivered_at FROM messages")}
    assert [code for message, code in done.messages.items() if links[code]["message_id"] != messages[message]["id"]] == []
    assert len(links) == len(messages), "each message has its link, and no message is stored twice"

    stored = Counter({row["code"]: row["hits"] for row in query(HITS_BY_CODE)})
    lost = {code: (count, stored[code]) for code, count in done.clicks.items() if stored[code] < count}
    assert lost == {}, "(acknowledged, stored)"
    extra = {code: hits for code, hits in stored.items() if hits > done.clicks[code] + done.uncertain_clicks[code]}
    assert extra == {}, "no hit is stored twice, and no hit that got 503 is stored"

    clicked = {row["message_id"] for row in query("SELECT id AS message_id FROM first_clicks WHERE at IS NOT NULL")}
    events = query("SELECT id, message_id FROM events WHERE topics & 1 > 0 AND hit_id IS NOT NULL")
    assert Counter(row["message_id"] for row in events) == Counter(clicked), "one CLICKTHRU for each clicked message"
    assert {messages[m]["id"] for m, code in done.messages.items() if done.clicks[code]} <= clicked

    conversions = [row["transaction_id"] for row in query("SELECT transaction_id FROM conversions")]
    assert len(conversions) == len(set(conversions))
    assert set(done.conversions) <= set(conversions) <= set(done.conversions) | done.uncertain_conversions
    assert [message for message in done.delivered if messages[message]["delivered_at"] is None] == []

    wrong = {code: links[code]["url"] for code, possible in done.destinations.items() if links[code]["url"] not in possible}
    assert wrong == {}, "the last acknowledged change of a link is stored"
    settings = orjson.loads(query("SELECT settings FROM applications")[0]["settings"])
    assert {name: settings.get(name) for name, possible in done.settings.items() if settings.get(name) not in possible} == {}

    told: dict[str, set[str]] = defaultdict(set)
    for request in endpoint.arrived:
        told[request.headers["webhook-id"]].add(request.json["message_id"])
    assert {len(of_event) for of_event in told.values()} == {1}
    (deliveries,) = query(
        "SELECT count(*) AS made, sum(CASE WHEN status = 1 THEN 1 ELSE 0 END) AS delivered FROM deliveries "
        "WHERE tracker_id IS NOT NULL"
    )
    assert deliveries["made"] == deliveries["delivered"]
    assert len(told) == deliveries["made"], "each delivery was sent, and nothing that is not stored was sent"
    assert {message for message, code in done.messages.items() if done.clicks[code]} <= set().union(*told.values())

    assert min(done.statuses[kind, 200] for kind in ("rewrite", "track", "report", "link", "settings")) > 0
    assert done.statuses["click", 302] > 0
    unexpected = {kind: count for kind, count in done.statuses.items() if kind[1] not in (0, 200, 302, 503)}
    assert unexpected == {}
