"""Fixtures that start real `shortener` processes. These processes store their data on the disk, because the tests examine
durability.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.endpoint import Endpoint
from tests.acceptance.nodes import Nodes
from tests.acceptance.process import Server, serving
from tests.cli.shell import create_installation
from tests.conftest import new_postgresql_database
from tests.servers import PostgresProcess, RedisProcess


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Yield a temporary folder on the disk. For other tests, temporary folders may be in memory."""
    folder = Path(tempfile.mkdtemp(prefix="shortener-acceptance-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server(tmp_path: Path, sqlite_template: Path) -> Iterator[Server]:
    """A server at its first start. The schema already exists in its database, because migrations would double the time of the
    start."""
    create_installation(tmp_path / "data", sqlite_template)
    (tmp_path / "data" / "shortener.db").chmod(0o600)
    yield from serving(tmp_path)


@pytest.fixture
def nodes(postgres_server: PostgresProcess, redis_server: RedisProcess, tmp_path: Path) -> Iterator[Nodes]:
    """Nodes that share a PostgreSQL server and a Redis server. The test may stop both servers."""
    url = asyncio.run(new_postgresql_database(postgres_server.url, None))
    nodes = Nodes(tmp_path, url, redis_server.url, settings={"HIT_DEADLINE": "0.5", "DATABASE_TIMEOUT": "2"})
    yield nodes
    nodes.close()


@pytest.fixture
def nodes_without_redis(postgresql: str, postgresql_template: str, tmp_path: Path) -> Iterator[Nodes]:
    """Nodes without Redis, on the PostgreSQL server that all tests share. The schema already exists in their database."""
    nodes = Nodes(tmp_path, asyncio.run(new_postgresql_database(postgresql, postgresql_template)))
    yield nodes
    nodes.close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()
