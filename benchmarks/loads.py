"""What is asked of a server, for the benchmarks and the profiles: each makes what it needs, and tells wrk what to ask for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import rig
from benchmarks.rig import Load, Server

WARM = 2000  # links that are clicked before anything is measured


@dataclass(frozen=True)
class Work:
    """Requests that wrk sends again and again, over so many connections."""

    url: str
    script: Path | None
    connections: int = 64
    header: str | None = None

    def run(self, seconds: float) -> Load:
        return rig.wrk(self.url, seconds=seconds, connections=self.connections, script=self.script, header=self.header)


def first_clicks(server: Server, codes: list[str]) -> Work:
    """Distinct links in no order. `codes` is shuffled; its first WARM are clicked once now."""
    random.Random(1).shuffle(codes)
    rig.wrk(server.base, seconds=1, script=rig.script(server.folder, "warm", [f"/{code}" for code in codes[:WARM]]))
    return Work(server.base, rig.script(server.folder, "distinct", [f"/{code}" for code in codes[WARM:]]))


def repeat_clicks(server: Server, code: str) -> Work:
    return Work(f"{server.base}/{code}", None, header=f"User-Agent: {rig.PHONE}")


def unknown_codes(server: Server) -> Work:
    paths = [f"/{random.Random(n).getrandbits(59):010x}"[:11] for n in range(10_000)]
    return Work(server.base, rig.script(server.folder, "unknown", paths))


def rewrites(server: Server, recipients: int, connections: int) -> Work:
    """Two thousand requests of so many recipients each."""

    def body(number: int) -> str:
        to = [rig.phone(number * recipients + n) for n in range(recipients)]
        text = 'Hello Kola, please visit us at #track("https://shop.example/a?b=1") for new information'
        return json.dumps({"to": to if recipients > 1 else to[0], "body": text})

    key = {"X-API-Key": server.first["api_key"]}
    bodies = [body(n) for n in range(2000)]
    return Work(server.base, rig.post_script(server.folder, f"rewrite{recipients}", bodies, "/api/v1/rewrite", key), connections)


def conversions(server: Server, messages: int) -> Work:
    """One for each of so many messages."""
    ids = []
    with server.api() as client:
        for start in range(0, messages, 500):
            to = [rig.phone(start + n) for n in range(500)]
            answer = client.post("/api/v1/rewrite", json={"to": to, "body": "x"})
            ids += [message["message_id"] for message in answer.json()["messages"]]
    token = {"X-Api-Token": server.first["tracker_token"]}
    bodies = [json.dumps({"message_id": one, "action": "deposit", "value": "25.00", "currency": "EUR"}) for one in ids]
    return Work(server.base, rig.post_script(server.folder, "convert", bodies, "/api/v1/callback/action", token))


#: What `profiles.py` looks at, row by row of the table.
WORKS: dict[str, Callable[[Server], Work]] = {
    "first clicks": lambda server: first_clicks(server, server.links(300_000)),
    "repeat clicks": lambda server: repeat_clicks(server, server.links(1)[0]),
    "unknown codes": unknown_codes,
    "rewrite, one message": lambda server: rewrites(server, 1, 64),
    "rewrite, 100 recipients": lambda server: rewrites(server, 100, 16),
    "conversions": lambda server: conversions(server, 100_000),
}
