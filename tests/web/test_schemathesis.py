"""Schemathesis generates requests from the OpenAPI document, valid and invalid ones, and sends them to a real server.

No response may have a status of 500 or above, or differ from the document. The tests take long, so they use only PostgreSQL. It is
the stricter engine: it rejects NUL in a text and numbers beyond the range of a column, which SQLite would store.
"""

from __future__ import annotations

import asyncio
import copy
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from shortener.container import Service, open_service
from shortener.server.application import HttpApplication
from shortener.settings import Settings
from tests.conftest import new_postgresql_database
from tests.web.openapi_document import DOCUMENT

EXAMPLES = 10  # number of generated requests for each endpoint
schema = schemathesis.openapi.from_dict(copy.deepcopy(DOCUMENT))


@dataclass(frozen=True)
class Served:
    url: str
    headers: dict[str, str]


class Server(uvicorn.Server):
    """A uvicorn server that sets the result of the future `up` when it listens."""

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
    """Start a server with an event loop in a separate thread, because Schemathesis calls it from synchronous code."""
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
            service.start(deliver=False)  # without deliveries, because the generated trackers have arbitrary URLs
            servers.append(Server(service, up))
            await servers[0].serve()
            await service.close()
        except BaseException as error:
            if not up.done():
                up.set_exception(error)
            raise

    with ThreadPoolExecutor(1) as apart:
        running = apart.submit(lambda: asyncio.run(serve()))
        yield up.result(30)
        servers[0].should_exit = True
        running.result(30)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_response_conforms_to_the_openapi_document(case: schemathesis.Case[Any], served: Served) -> None:
    response = case.call(base_url=served.url, headers=served.headers, allow_redirects=False, timeout=10)
    case.validate_response(
        response,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_headers_conformance,
            response_schema_conformance,
        ],
    )
