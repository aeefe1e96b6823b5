"""What the real processes of a test need around them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.endpoint import Endpoint
from tests.acceptance.nodes import Nodes
from tests.acceptance.process import Server, serving
from tests.conftest import new_postgresql_database
from tests.servers import PostgresProcess, RedisProcess


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    yield from serving(tmp_path)


@pytest.fixture
def nodes(postgres_server: PostgresProcess, redis_server: RedisProcess, tmp_path: Path) -> Iterator[Nodes]:
    """On a PostgreSQL and a Redis that the test may take away."""
    url = asyncio.run(new_postgresql_database(postgres_server.url, None))
    nodes = Nodes(tmp_path, url, redis_server.url, settings={"HIT_DEADLINE": "0.5", "DATABASE_TIMEOUT": "2"})
    yield nodes
    nodes.close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()
