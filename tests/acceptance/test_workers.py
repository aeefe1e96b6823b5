"""Tests of signals to the processes of `serve --workers`: signals to the parent process, and signals to its workers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from functools import partial

import httpx
import psutil
import pytest

from tests.acceptance.nodes import Answers, Nodes, click_until, wait_until
from tests.acceptance.process import Server
from tests.servers import PATIENCE, children


@pytest.fixture
def server(nodes_without_redis: Nodes) -> Server:
    server = nodes_without_redis.serve("--workers", "2")
    assert len(workers_of(server)) == 2
    return server


def workers_of(server: Server) -> set[int]:
    assert server.process is not None
    return set(children(server.process.pid, "spawn_main"))


def is_running(worker: int) -> bool:
    try:
        return psutil.Process(worker).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_replaced(server: Server, victim: int) -> bool:
    workers = workers_of(server)
    return victim not in workers and len(workers) == 2


def codes_of(server: Server) -> list[str]:
    with server.api() as client:
        batch = {"to": [f"+1408555{number:04}" for number in range(20)], "body": '#track("https://x.example/")'}
        return [message["links"][0]["code"] for message in client.post("/api/v1/rewrite", json=batch).json()["messages"]]


def can_rewrite(server: Server) -> bool:
    body = {"to": "+14085550100", "body": '#track("https://x.example/")'}
    with server.api() as client:
        try:
            return client.post("/api/v1/rewrite", json=body, timeout=10).status_code == 200
        except httpx.TransportError:
            return False


def click_during(server: Server, act: Callable[[], None]) -> Answers:
    """Click continuously while `act` runs. Return the responses to the clicks."""
    codes, answers = codes_of(server), Answers()

    async def run() -> None:
        done = False
        clicks = asyncio.create_task(click_until([server.base], codes, lambda: done, answers, people=4, pause=0.02))
        await asyncio.to_thread(act)
        done = True
        await clicks

    asyncio.run(run())
    return answers


def test_workers_stop_and_free_the_port_if_their_parent_process_is_killed(server: Server) -> None:
    workers = workers_of(server)
    server.kill()
    wait_until(lambda: not any(is_running(worker) for worker in workers), "a worker does not end", PATIENCE)
    with socket.create_server(("127.0.0.1", server.port), reuse_port=False):
        pass  # the port is free
    server.options = ("--workers", "2")
    server.start()
    assert server.stop() == 0


def test_sighup_to_the_parent_process_replaces_each_worker_and_every_click_gets_its_redirect(server: Server) -> None:
    before = workers_of(server)

    def reload() -> None:
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(workers_of(server)) == 2 and not workers_of(server) & before, "a worker was not replaced")

    answers = click_during(server, reload)
    assert set(answers.statuses) == {302}
    assert server.stop() == 0


def test_a_worker_that_gets_a_signal_is_replaced_and_sigint_to_the_parent_process_stops_all_workers(server: Server) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
        victim = min(workers_of(server))
        os.kill(victim, number)
        wait_until(partial(is_replaced, server, victim), "no worker replaces the killed worker")
        wait_until(lambda: can_rewrite(server), "the workers do not respond")
    workers = workers_of(server)
    assert server.process is not None
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(PATIENCE) == 0
    assert not any(is_running(worker) for worker in workers)
