"""The receivers of a demo installation: the endpoints of its trackers and of its gateway, on a port of this machine.

One receiver works, one fails occasionally, and one always fails after its first requests. The portal of the demo therefore shows
retries, dead deliveries and an open circuit breaker. Nothing is sent to other machines.
"""
# Tested by tests/cli/test_demo_traffic.py

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from shortener.cli.sockets import bind, port_of

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: The trackers of the demo. {receivers} is the base URL of this module's server.
TRACKERS: tuple[dict[str, Any], ...] = (
    {"name": "CRM", "url": "{receivers}/crm", "events": ["click", "conversion"], "secret": "whsec_" + "c2hvcnRlbmVy" * 3},
    {
        "name": "Attribution",
        "url": "{receivers}/attribution?cid={click_id}&campaign={campaign}",
        "events": ["click"],
        "method": "GET",
    },
    {"name": "Affiliate partner", "url": "{receivers}/partner", "events": ["conversion"], "max_attempts": 3},
)
GATEWAY = "Backup route"
FAILS_AFTER = 10  # The number of requests to /partner that succeed. All later requests fail.
FAILS_EVERY = 9  # Every request to /attribution whose number is a multiple of this number fails.


class DemoReceivers:
    """An ASGI application that acts as the receivers of the demo. The request path selects the receiver."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        status, body = self._respond(scope["path"].strip("/"))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _respond(self, name: str) -> tuple[int, bytes]:
        self._requests[name] += 1
        number = self._requests[name]
        if name == "partner" and number > FAILS_AFTER:
            return 500, b'{"error":"the account of this partner is closed"}'
        if name == "attribution" and number % FAILS_EVERY == 0:
            return 503, b'{"error":"try again later"}'
        if name == "gateway":
            return 200, b'{"message_id":"route-%d"}' % number
        return 200, b'{"status":"ok"}'


@contextlib.contextmanager
def demo_receivers() -> Iterator[str]:
    """Serve the receivers in a thread. Yield their base URL."""
    import uvicorn  # uvicorn is imported here, because only the demo needs it

    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(
        DemoReceivers(), access_log=False, log_config=None, log_level="error", lifespan="off", server_header=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="demo receivers", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port_of(listener)}"
    finally:
        server.should_exit = True
        thread.join(10)
