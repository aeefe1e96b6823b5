"""Tests of a PostgreSQL that refuses connections or rejects statements. Every request must get a response, and the service must
recover by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import asyncpg
import httpx
import pytest

from shortener.accounts.credentials import Credentials
from shortener.container import Service, open_service
from shortener.settings import Settings
from shortener.storage.migrate import migrate
from tests.clicks.helpers import PHONE_HEADERS, create_link
from tests.conftest import client_of, new_postgresql_database
from tests.servers import PATIENCE, PostgresProcess, RedisProcess

DEADLINE = 0.5  # HIT_DEADLINE in seconds
PASSWORD = "first-password-of-the-test"
MARGIN = 3.0  # the additional time in seconds that is permitted, because the machine may be busy


class Account:
    """A separate PostgreSQL user for the service. A test changes the permissions and the password of this user."""

    def __init__(self, server: PostgresProcess, name: str, url: str, admin_url: str) -> None:
        self.server, self.name, self.url, self._admin_url = server, name, url, admin_url
        self.database = url.partition("?")[0].rpartition("/")[2]

    async def execute(self, *statements: str) -> None:
        """Run statements as the superuser, in the database of the account."""
        connection = await asyncpg.connect(self._admin_url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def cut(self) -> None:
        """Close all connections of this PostgreSQL user."""
        await self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{self.name}'")

    @contextlib.asynccontextmanager
    async def without_permission(self) -> AsyncIterator[None]:
        await self.execute(f"REVOKE CONNECT ON DATABASE {self.database} FROM PUBLIC, {self.name}")
        await self.cut()
        yield
        await self.execute(f"GRANT CONNECT ON DATABASE {self.database} TO {self.name}")

    @contextlib.asynccontextmanager
    async def without_login(self) -> AsyncIterator[None]:
        """Make PostgreSQL reject logins with the error 28000, as it does for an unknown user or a changed password."""
        await self.execute(f"ALTER ROLE {self.name} NOLOGIN")
        await self.cut()
        yield
        await self.execute(f"ALTER ROLE {self.name} LOGIN")

    @contextlib.asynccontextmanager
    async def without_connections(self) -> AsyncIterator[None]:
        await self.execute(f"ALTER ROLE {self.name} CONNECTION LIMIT 0")
        await self.cut()
        yield
        await self.execute(f"ALTER ROLE {self.name} CONNECTION LIMIT -1")

    @contextlib.asynccontextmanager
    async def without_tables(self) -> AsyncIterator[None]:
        """Make PostgreSQL reject every statement on links, messages and hits, including SELECT."""
        tables = ("links", "messages", "hits")
        await self.execute(*(f"ALTER TABLE {table} RENAME TO {table}_away" for table in tables))
        yield
        await self.execute(*(f"ALTER TABLE {table}_away RENAME TO {table}" for table in tables))


@pytest.fixture
async def account(postgres_server: PostgresProcess) -> AsyncIterator[Account]:
    admin_url = await new_postgresql_database(postgres_server.url, None)
    await migrate(admin_url)
    name = "user_" + admin_url.partition("?")[0].rpartition("/")[2]
    account = Account(postgres_server, name, admin_url.replace("postgres:@", f"{name}:@"), admin_url)
    assert account.url != admin_url, "the URL of the server must name the user"
    await account.execute(
        f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'",
        f"GRANT CONNECT ON DATABASE {account.database} TO {name}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}",
    )
    yield account
    await account.execute(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@contextlib.asynccontextmanager
async def running(account: Account, redis_url: str, folder: str) -> AsyncIterator[tuple[Service, Credentials]]:
    settings = Settings(data_dir=folder, database_url=account.url, redis_url=redis_url, redis_timeout=2, hit_deadline=DEADLINE)
    service = await open_service(settings)
    assert service.first_credentials is not None
    service.start()
    try:
        yield service, service.first_credentials
    finally:
        await service.close(grace=2)


Fault = Callable[[Account], AbstractAsyncContextManager[None]]


@pytest.mark.parametrize("with_redis", [True, False], ids=["redis", "no redis"])
@pytest.mark.parametrize(
    "fault",
    [Account.without_permission, Account.without_login, Account.without_connections, Account.without_tables],
    ids=["revoke connect", "no login", "too many connections", "rejected statements"],
)
async def test_every_request_gets_a_response_while_postgresql_refuses_connections_and_afterwards(
    account: Account,
    redis_server: RedisProcess,
    tmp_path_factory: pytest.TempPathFactory,
    fault: Fault,
    with_redis: bool,
) -> None:
    folder = str(tmp_path_factory.mktemp("data"))
    async with (
        running(account, redis_server.url if with_redis else "", folder) as (service, credentials),
        client_of(service, {"X-API-Key": credentials.api_key}) as api,
        client_of(service, PHONE_HEADERS) as phone,
    ):
        path = await create_link(api)
        assert (await phone.get(path)).status_code == 302
        answered = 1
        async with fault(account):
            for _ in range(3):
                began = time.monotonic()
                click = await phone.get(path)
                assert time.monotonic() - began < DEADLINE + 0.5 + MARGIN
                if with_redis:
                    assert click.status_code == 302, "the link cache knows the link"
                else:
                    assert (click.status_code, click.headers["Retry-After"]) == (503, "2")
                answered += click.status_code == 302
            for call in (rewrite(api), api.get("/api/v1/sms/status/unknown"), api.get("/api/v1/sms/messages")):
                response = await call
                assert response.status_code == 503, response.text
                assert int(response.headers["Retry-After"]) > 0
            assert service.supervisor.is_healthy, "no task ended"

        async with asyncio.timeout(PATIENCE):
            while (await rewrite(api)).status_code != 200 or service.recorder.outage or service.recorder.unrecorded:
                await asyncio.sleep(0.05)  # wait a moment, then check the condition again
            # On a busy machine, a commit can take longer than the deadline. Then the response is 503, and the click is not
            # compared.
            while (await phone.get(path)).status_code != 302:
                await asyncio.sleep(0.05)  # wait a moment, then check the condition again
            while (hits := await count_hits(account)) < answered + 1:
                await asyncio.sleep(0.05)  # wait a moment, then check the condition again
        assert hits == answered + 1, "a hit that got 503 is not stored"
        assert service.recorder.totals.dropped == 0


async def rewrite(api: httpx.AsyncClient) -> httpx.Response:
    return await api.post("/api/v1/rewrite", json={"to": "+14085550199", "body": '#track("https://x.example/")'})


async def count_hits(account: Account) -> int:
    connection = await asyncpg.connect(account._admin_url)
    try:
        count: int = await connection.fetchval("SELECT count(*) FROM hits")
        return count
    finally:
        await connection.close()
