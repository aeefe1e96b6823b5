"""Tests of calls to real Redis servers that are down, frozen, slow or restarted, and of the forms of a Redis URL."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from shortener.redis.client import Client, RedisServer, RedisUnavailable, open_redis
from tests.servers import PATIENCE, Proxy, RedisProcess, free_port, tls_context


async def ping(client: Client) -> bool:
    response: bool = await client.ping()
    return response


#: On a busy machine a call may be slow, so the fastest of this many calls is measured.
MEASUREMENTS = 10


@contextlib.asynccontextmanager
async def opened(url: str, timeout: float = PATIENCE) -> AsyncIterator[RedisServer]:
    server = open_redis(url, timeout=timeout)
    yield server
    await server.close()


async def seconds_of(call: Awaitable[object]) -> float:
    """Return how many seconds a Redis call took to raise RedisUnavailable."""
    began = time.monotonic()
    with pytest.raises(RedisUnavailable):
        await call
    return time.monotonic() - began


async def until_up(server: RedisServer) -> None:
    async with asyncio.timeout(PATIENCE):
        while not server.is_up:
            await asyncio.sleep(0.01)  # a pause before the condition is checked again


async def test_the_service_sends_no_commands_to_redis_while_redis_does_not_respond_to_pings(redis_server: RedisProcess) -> None:
    async with opened(redis_server.url) as server:
        assert await server.run(ping)
        redis_server.kill()
        assert await seconds_of(server.run(ping)) < PATIENCE
        calls = server.calls
        assert min([await seconds_of(server.run(ping)) for _ in range(1000)]) < 0.05
        assert server.calls == calls, "a Redis that is down gets no commands"
        assert not server.is_up
        redis_server.start()
        await until_up(server)
        assert await server.run(ping)


@pytest.mark.parametrize("end", ["a result", "an error"])
async def test_a_redis_call_ends_if_the_library_loses_the_cancellation_of_its_task(redis_server: RedisProcess, end: str) -> None:
    async def lose_cancellation(client: Client) -> bool:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        if end == "an error":
            raise ConnectionError
        return True

    async with opened(redis_server.url) as server:
        task = asyncio.create_task(server.run(lose_cancellation))
        await asyncio.sleep(0)  # let the task run until it waits
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with opened(redis_server.url, timeout=0.01) as server:
        with pytest.raises(RedisUnavailable, match="TimeoutError"):
            await server.run(lose_cancellation)


async def test_redis_calls_wait_for_a_free_connection_and_do_not_mark_redis_as_down(redis_server: RedisProcess) -> None:
    async with opened(redis_server.url) as server:
        assert await asyncio.gather(*(server.run(ping) for _ in range(200))) == [True] * 200
        assert server.is_up
        assert server.failures == 0
        assert server.queued > 0


async def test_a_redis_call_that_gets_no_connection_in_time_does_not_mark_redis_as_down(redis_server: RedisProcess) -> None:
    async def hold(client: Client) -> None:
        await client.blpop(["nothing"], timeout=0.5)

    server = open_redis(redis_server.url, timeout=PATIENCE, connections=2)
    holding = [asyncio.create_task(server.run(hold)) for _ in range(2)]
    while not server._slots.locked():
        await asyncio.sleep(0)  # a pause before the condition is checked again
    server._timeout = 0.01
    assert await seconds_of(server.run(ping)) < PATIENCE
    assert server.is_up
    await asyncio.gather(*holding)
    server._timeout = PATIENCE
    assert await server.run(ping)
    await server.close()


async def test_a_redis_server_that_hangs_delays_calls_only_until_the_server_is_marked_as_down(redis_server: RedisProcess) -> None:
    async with opened(redis_server.url) as server:
        assert await server.run(ping)
        for _ in range(MEASUREMENTS):
            redis_server.freeze()
            server._timeout = 0.1
            together = await asyncio.gather(*(seconds_of(server.run(ping)) for _ in range(10)))
            assert max(together) < PATIENCE
            assert min([await seconds_of(server.run(ping)) for _ in range(10)]) < 0.05
            redis_server.thaw()
            server._timeout = PATIENCE
            await until_up(server)
            if min(together) < 0.45:
                break
        assert min(together) < 0.45, "a call takes at most the time limits of the call and of the ping"
        assert await server.run(ping)


async def test_a_slow_redis_server_counts_as_down_until_it_responds_in_time(redis_server: RedisProcess) -> None:
    async with Proxy(redis_server.port).running() as proxy, opened(f"redis://127.0.0.1:{proxy.port}") as server:
        assert await server.run(ping)
        server._timeout, proxy.delay = 0.1, 0.2
        await seconds_of(server.run(ping))
        assert min([await seconds_of(server.run(ping)) for _ in range(10)]) < 0.05
        assert await server.run(ping, force=True), "a forced call waits longer"
        server._timeout, proxy.delay = PATIENCE, 0.0
        await until_up(server)


async def test_a_redis_call_is_repeated_if_a_restart_of_redis_cut_its_connection(redis_server: RedisProcess) -> None:
    async with opened(redis_server.url) as server:
        assert await server.run(ping)
        redis_server.kill()
        redis_server.start()
        assert await server.run(ping)
        assert server.is_up


async def test_a_command_that_redis_rejects_does_not_mark_redis_as_down(redis_server: RedisProcess) -> None:
    async def wrong(client: Client) -> None:
        await client.execute_command("NOSUCHCOMMAND")

    async with opened(redis_server.url) as server:
        with pytest.raises(RedisUnavailable, match="unknown command"):
            await server.run(wrong)
        assert server.is_up


async def write_and_read(client: Client) -> list[bytes | None]:
    pipe = client.pipeline(transaction=False)
    for number in range(20):
        pipe.set(f"key{number}", str(number))
    await pipe.execute()
    pipe = client.pipeline(transaction=False)
    for number in range(20):
        pipe.get(f"key{number}")
    values: list[bytes | None] = await pipe.execute()
    return values


WRITTEN = [str(number).encode() for number in range(20)]


async def test_the_redis_client_connects_over_a_unix_socket(tmp_path: Path) -> None:
    server = RedisProcess(tmp_path, "--unixsocket", str(tmp_path / "s"))
    server.start()
    async with opened(f"unix://{tmp_path}/s") as by_socket:
        assert await by_socket.run(write_and_read) == WRITTEN
    server.kill()


async def test_the_redis_client_uses_the_password_and_the_database_number_of_the_url(redis_server: RedisProcess) -> None:
    with contextlib.closing(redis_server.client()) as client:
        client.acl_setuser("me", enabled=True, passwords=["+pass@word"], keys=["*"], categories=["+@all"])
    async with opened(f"redis://me:pass%40word@127.0.0.1:{redis_server.port}/3") as database:
        assert await database.run(write_and_read) == WRITTEN
        assert await database.run(lambda client: client.acl_whoami()) == "me"
    with contextlib.closing(redis_server.client()) as client:
        assert client.info("keyspace").keys() == {"db3"}
    async with opened(f"redis://me:wrong@127.0.0.1:{redis_server.port}/3") as wrong_password:
        await seconds_of(wrong_password.run(ping))


async def test_the_redis_client_rejects_a_tls_server_with_an_unknown_certificate(
    redis_server: RedisProcess, certificate: Path
) -> None:
    async with Proxy(redis_server.port, tls=tls_context(certificate)).running() as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0"
        async with opened(f"{url}?ssl_ca_certs={certificate}") as trusted:
            assert await trusted.run(write_and_read) == WRITTEN
        async with opened(url) as unknown:
            await seconds_of(unknown.run(ping))


async def test_the_redis_client_connects_to_the_new_primary_after_a_sentinel_failover(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "sentinel")]
    for folder in folders:
        folder.mkdir()
    one, two = RedisProcess(folders[0]), RedisProcess(folders[1])
    one.start()
    two._options = ("--replicaof", "127.0.0.1", str(one.port))
    two.start()
    port = free_port()
    configuration = folders[2] / "sentinel.conf"
    configuration.write_text(
        f"sentinel monitor main 127.0.0.1 {one.port} 1\nsentinel down-after-milliseconds main 300\n"
        "sentinel failover-timeout main 2000\n"
    )
    sentinel = RedisProcess(folders[2], str(configuration), port=port, mode="sentinel")
    sentinel.start()
    try:
        with contextlib.closing(two.client()) as replica:
            async with asyncio.timeout(PATIENCE):
                while replica.info("replication")["master_link_status"] != "up":
                    await asyncio.sleep(0.05)  # a pause before the condition is checked again
        async with opened(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/main/0") as server:
            assert await server.run(write_and_read) == WRITTEN
            server._timeout = 0.5
            with contextlib.closing(sentinel.client()) as client:
                async with asyncio.timeout(PATIENCE):
                    while client.sentinel_master("main")["num-slaves"] != 1:
                        await asyncio.sleep(0.05)  # a pause before the condition is checked again
            one.kill()
            async with asyncio.timeout(PATIENCE):
                while True:
                    with contextlib.suppress(RedisUnavailable):
                        assert await server.run(write_and_read) == WRITTEN
                        break
                    await asyncio.sleep(0.1)  # a pause before the condition is checked again
    finally:
        for process in (sentinel, two, one):
            process.kill()


async def test_a_redis_cluster_stores_keys_on_all_its_nodes(tmp_path: Path) -> None:
    nodes = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        # A node of a cluster also listens on the port that is 10,000 higher, and ports end at 65,535.
        port = next(port for _ in range(100) if (port := free_port()) < 55_000)
        nodes.append(RedisProcess(folder, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", port=port))
        nodes[-1].start()
    try:
        half = 16384 // 2
        for node, slots in zip(nodes, (range(half), range(half, 16384)), strict=True):
            with contextlib.closing(node.client()) as client:
                client.execute_command("CLUSTER", "ADDSLOTS", *slots)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", str(node.port))
        with contextlib.closing(nodes[0].client()) as client:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port)
        for node in nodes:
            with contextlib.closing(node.client()) as client:
                async with asyncio.timeout(PATIENCE):
                    while "cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                        await asyncio.sleep(0.05)  # a pause before the condition is checked again
        async with opened(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{nodes[0].port}") as server:
            assert await server.run(write_and_read) == WRITTEN
            sizes = []
            for node in nodes:
                with contextlib.closing(node.client()) as client:
                    sizes.append(client.dbsize())
            assert sum(sizes) == 20
            assert min(sizes) > 0, "both nodes have keys"
    finally:
        for node in nodes:
            node.kill()


async def test_a_redis_server_that_rejects_writes_responds_to_pings_but_accepts_no_writes(redis_server: RedisProcess) -> None:
    server = open_redis(redis_server.url, timeout=PATIENCE)
    with contextlib.closing(redis_server.client()) as client:
        assert await server.accepts_writes()
        client.config_set("min-replicas-to-write", 1)
        assert await server.ping()
        assert not await server.accepts_writes()
    await server.close()
