"""The loads of the benchmarks and profiles. Each function prepares the data of a load on a server, and returns the requests that
wrk sends.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import rig, traffic
from benchmarks.rig import Load, Server

WARM_UP_LINKS = 2000  # links that are clicked before a measurement starts


@dataclass(frozen=True)
class Work:
    """Requests that wrk sends repeatedly over `connections` connections."""

    url: str
    script: Path
    connections: int = 64

    def run(self, seconds: float) -> Load:
        return rig.wrk(self.url, self.script, seconds=seconds, connections=self.connections)


def first_clicks(server: Server, codes: list[str]) -> Work:
    """Shuffle `codes` and click on the first WARM_UP_LINKS of them. Return clicks on the other links, one for each."""
    random.Random(1).shuffle(codes)
    warm_up = traffic.script(server.folder, "warm_up", [f"/{code}" for code in codes[:WARM_UP_LINKS]])
    rig.wrk(server.base, warm_up, seconds=1)
    return Work(server.base, traffic.script(server.folder, "distinct", [f"/{code}" for code in codes[WARM_UP_LINKS:]]))


def repeat_clicks(server: Server, code: str, number: int = 0) -> Work:
    """Return clicks of many people on one link. Each `number` gives a different set of client addresses."""
    return Work(server.base, traffic.script(server.folder, f"repeat{number}", [f"/{code}"]))


def unknown_codes(server: Server, number: int = 0) -> Work:
    """Return requests for codes that do not exist. Each `number` gives a different set of client addresses."""
    return Work(server.base, traffic.script(server.folder, f"unknown{number}", rig.random_paths()))


def rewrites(server: Server, recipients: int, connections: int) -> Work:
    """Return rewrite requests with `recipients` recipients each and 2,000 different bodies."""

    def body(number: int) -> str:
        to = [rig.phone(number * recipients + n) for n in range(recipients)]
        text = 'Hello Kola, please visit us at #track("https://shop.example/a?b=1") for new information'
        return json.dumps({"to": to if recipients > 1 else to[0], "body": text})

    key = {"X-API-Key": server.first["api_key"]}
    bodies = [body(n) for n in range(2000)]
    return Work(server.base, rig.post_script(server.folder, f"rewrite{recipients}", bodies, "/api/v1/rewrite", key), connections)


def conversions(server: Server, messages: int) -> Work:
    """Rewrite `messages` messages. Return one conversion report for each message."""
    ids = []
    with server.api() as client:
        for start in range(0, messages, 500):
            to = [rig.phone(start + n) for n in range(500)]
            response = client.post("/api/v1/rewrite", json={"to": to, "body": "x"})
            ids += [message["message_id"] for message in response.json()["messages"]]
    token = {"X-Api-Token": server.first["tracker_token"]}
    bodies = [json.dumps({"message_id": id_, "action": "deposit", "value": "25.00", "currency": "EUR"}) for id_ in ids]
    return Work(server.base, rig.post_script(server.folder, "convert", bodies, "/api/v1/callback/action", token))


#: The loads that `profiles.py` examines, by their names in the report.
WORKS: dict[str, Callable[[Server], Work]] = {
    "first clicks": lambda server: first_clicks(server, server.links(300_000)),
    "repeat clicks": lambda server: repeat_clicks(server, server.links(1)[0]),
    "unknown codes": unknown_codes,
    "rewrite, one message": lambda server: rewrites(server, 1, 64),
    "rewrite, 100 recipients": lambda server: rewrites(server, 100, 16),
    "conversions": lambda server: conversions(server, 60_000),
}
