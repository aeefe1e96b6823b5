"""Test with Schemathesis, which generates requests from the OpenAPI document, valid and invalid ones, and sends them to a real
server.

No response may have a status of 500 or above, or differ from the document. The test takes long, so it uses only PostgreSQL.
PostgreSQL is the stricter engine: it rejects NUL in a text and numbers beyond the range of a column, which SQLite would store.

The test runs the command line of Schemathesis, and not its plugin for pytest. With the plugin, all operations would have the same
node id, and pytest-xdist would run only one of them.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from shortener.container import Service, open_service
from shortener.server.application import HttpApplication
from shortener.settings import Settings
from tests.conftest import new_postgresql_database
from tests.web.openapi_document import openapi_document

#: the number of random requests for each endpoint, in addition to the requests of the phases "examples" and "coverage"
EXAMPLES = 5
CHECKS = ",".join(
    (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    )
)


@dataclass(frozen=True)
class Served:
    url: str
    headers: dict[str, str]


class Server(uvicorn.Server):
    """A uvicorn server. It sets the result of the future `up` as soon as it listens."""

    def __init__(self, service: Service, up: Future[Served]) -> None:
        super().__init__(uvicorn.Config(HttpApplication(service), port=0, lifespan="off", log_config=None))
        self._credentials = service.first_credentials
        self._up = up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        assert self._credentials is not None
        headers = {"X-API-Key": self._credentials.api_key, "X-Api-Token": self._credentials.tracker_token}
        self._up.set_result(Served(f"http://127.0.0.1:{port}", headers))


@pytest.fixture(scope="module")
def served(postgresql: str, postgresql_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Start a server in a separate thread with its own event loop, because Schemathesis calls it from synchronous code."""
    url = asyncio.run(new_postgresql_database(postgresql, postgresql_template))
    values: dict[str, Any] = {
        "data_dir": tmp_path_factory.mktemp("data"),
        "database_url": url,
        "batch_limit": 5,
        "delivery_timeout": 0.05,
    }
    up: Future[Served] = Future()
    servers: list[Server] = []

    async def serve() -> None:
        try:
            service = await open_service(Settings(**values))
            service.start(deliver=False)  # send no deliveries, because the generated trackers have arbitrary URLs
            servers.append(Server(service, up))
            await servers[0].serve()
            await service.close()
        except BaseException as error:
            if not up.done():
                up.set_exception(error)
            raise

    with ThreadPoolExecutor(1) as apart, pytest.MonkeyPatch.context() as patch:
        # An unknown credential gets 503 if the accounts are not read in this time. A busy machine may need longer than the default
        # of half a second.
        patch.setattr("shortener.accounts.directory.MAX_CATCH_UP_SECONDS", 60.0)
        running = apart.submit(lambda: asyncio.run(serve()))
        yield up.result(30)
        servers[0].should_exit = True
        running.result(30)


def test_every_response_conforms_to_the_openapi_document(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(openapi_document()))
    options = [
        *("--url", served.url),
        *("--checks", CHECKS),
        *("--phases", "examples,coverage,fuzzing"),
        *("--max-examples", str(EXAMPLES)),
        *("--max-redirects", "0"),
        *("--request-timeout", "60"),
        *("--seed", "1"),
        *("--suppress-health-check", "all"),
        *("--warnings", "off"),
        "--continue-on-failure",
        "--no-color",
    ]
    for name, value in served.headers.items():
        options += ["--header", f"{name}: {value}"]
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(file), *options]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    operations = sum(len(operations) for operations in openapi_document()["paths"].values())
    assert f"{operations} selected / {operations} total" in ended.stdout
