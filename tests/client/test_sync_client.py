"""Tests of the blocking client: threads, forks, the end of the process, and that it has the same methods as AsyncClient."""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shortener.client import AsyncClient, Client, ConnectionFailedError, DeadlineError, RetryPolicy
from tests.client.scripted import accepted, hang, reply, scripted
from tests.servers import PATIENCE, free_port

TEXT = '#track("https://shop.example/a") now'


def methods(kind: type) -> dict[str, str]:
    found = inspect.getmembers(kind, inspect.isfunction)
    return {
        name: str(inspect.signature(method)).replace("AsyncIterator", "Iterator")
        for name, method in found
        if not name.startswith("_")
    }


def test_the_sync_client_and_the_async_client_have_the_same_methods_with_the_same_parameters() -> None:
    assert methods(Client) == methods(AsyncClient)
    assert list(inspect.signature(Client).parameters) == list(inspect.signature(AsyncClient).parameters)


def test_several_threads_can_share_one_client() -> None:
    with scripted(accepted()) as server, Client(server.base, api_key="KEY") as client, ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: client.rewrite(to="+1", body=TEXT), range(40)))
    assert {text.message_id for text in texts} == {"m-1"}
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 40


def test_a_closed_client_works_again_with_its_next_call() -> None:
    with scripted(accepted()) as server:
        client = Client(server.base, api_key="KEY")
        client.rewrite(to="+1", body=TEXT)
        client.close()
        client.close()
        assert client.rewrite(to="+1", body=TEXT).message_id == "m-1"
        client.close()


def test_the_background_thread_of_a_client_ends_if_the_client_is_garbage_collected_without_close() -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "shortener-client"}

    before = threads()
    with scripted(accepted()) as server:
        client = Client(server.base, api_key="KEY")
        client.rewrite(to="+1", body=TEXT)
        (thread,) = threads() - before
        del client
        gc.collect()
        thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_running_call_fails_when_another_thread_closes_the_client() -> None:
    with scripted(hang) as server:
        client = Client(server.base, api_key="KEY", retry=RetryPolicy(max_attempts=1))
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(client.status, "m-1")
            while not server.requests:
                threading.Event().wait(0.01)
            client.close()
            with pytest.raises((ConnectionFailedError, DeadlineError)):
                future.result(10)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_client_that_was_used_before_a_fork_works_in_the_new_process() -> None:
    with scripted(accepted()) as server:
        script = (
            "import os\n"
            "from shortener.client import Client\n"
            f"client = Client({server.base!r}, api_key='KEY')\n"
            "client.rewrite(to='+1', body='x')\n"
            "child = os.fork()\n"
            "assert client.rewrite(to='+1', body='x').message_id == 'm-1'\n"
            "os._exit(0) if child == 0 else None\n"
            "assert os.waitpid(child, 0)[1] == 0\n"
        )
        subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=PATIENCE)
    assert len(server.requests) == 3


@pytest.mark.slow
def test_a_python_process_ends_although_its_client_was_not_closed() -> None:
    script = (
        "from shortener.client import Client\n"
        f"client = Client('http://127.0.0.1:{free_port()}', api_key='KEY', timeout=1)\n"
        "print(client.rewrite(to='+1', body='#track(\"https://x.example/\")', on_failure='send_long').body)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "https://x.example/\n", "")


def test_the_client_reads_lists_page_by_page() -> None:
    row = {"message_id": "m", "to": "+1", "state": "SENT"}
    pages = [{"messages": [row, row], "next_cursor": "c1"}, {"messages": [row], "next_cursor": None}]
    with scripted(*(reply(200, page) for page in pages)) as server, Client(server.base, api_key="KEY") as client:
        assert len(list(client.messages(state="SENT", limit=2))) == 3
    assert [request.target for request in server.requests] == [
        "/api/v1/sms/messages?state=SENT&limit=2",
        "/api/v1/sms/messages?state=SENT&limit=2&cursor=c1",
    ]
