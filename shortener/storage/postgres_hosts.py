"""This module connects to PostgreSQL by a URL with one or several hosts.

asyncpg tries the hosts of a URL one after the other within one time limit. A machine that has lost its network does not respond,
so an attempt to connect to it would use the whole limit. The standby that has replaced the machine would never be tried.
Therefore `connect` starts with the first host. Whenever a host fails or needs longer than HOST_DELAY_SECONDS, `connect` also
tries the next host. It uses the first host that meets the requirement of `target_session_attrs`.

With several hosts, the default of `target_session_attrs` is `read-write`, because every process of this service writes.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg

HOST_DELAY_SECONDS = 0.25
_ATTRIBUTES = "target_session_attrs"


def split_hosts(url: str) -> list[str]:
    """Return one URL for each host of a libpq URL. The hosts are in the host part of the URL or in its parameter `host`.

    The URL is returned unchanged if it has one host, or if the number of ports does not fit the number of hosts."""
    parts = urlsplit(url)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    values = dict(parameters)
    user, at, addresses = parts.netloc.rpartition("@")
    hosts = (addresses or values.get("host", "")).split(",")
    ports = values.get("port", "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(hosts) == 1 or len(ports) != len(hosts):
        return [url]
    others = [(name, value) for name, value in parameters if name != "port" and (addresses or name != "host")]
    if _ATTRIBUTES not in values:
        others.append((_ATTRIBUTES, "read-write"))
    urls = []
    for host, port in zip(hosts, ports, strict=True):
        netloc = f"{user}{at}{host}" if addresses else parts.netloc
        own = ([] if addresses else [("host", host)]) + ([("port", port)] if port else [])
        urls.append(f"{parts.scheme}://{netloc}{parts.path}?{urlencode([*own, *others])}")
    return urls


async def connect(url: str, *, timeout: float, **options: Any) -> Any:
    """Return a connection of asyncpg. `timeout` is the limit in seconds for each host. `options` are options of
    `asyncpg.connect`.

    Raise OSError, PostgresError or InterfaceError if this fails. With several hosts, the text of the error contains the reason
    for each.
    """
    urls = split_hosts(url)
    if len(urls) == 1:
        return await asyncpg.connect(url, timeout=timeout, **options)
    left = iter(urls)
    started: list[asyncio.Task[Any]] = []
    running: set[asyncio.Task[Any]] = set()
    chosen = None
    try:
        while chosen is None:
            following = next(left, None)
            if following is not None:
                task = asyncio.create_task(asyncpg.connect(following, timeout=timeout, **options))
                started.append(task)
                running.add(task)
            elif not running:
                raise OSError("; ".join(f"host {number}: {_reason(task)}" for number, task in enumerate(started, 1)))
            wait = None if following is None else HOST_DELAY_SECONDS
            done, running = await asyncio.wait(running, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            chosen = next((task for task in started if task in done and task.exception() is None), None)
        return chosen.result()
    finally:
        for task in started:
            if task is not chosen:
                _give_up(task)


def _reason(task: asyncio.Task[Any]) -> str:
    error = task.exception()
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _give_up(task: asyncio.Task[Any]) -> None:
    """Cancel an attempt to connect. If it succeeds nevertheless, close its connection."""
    task.add_done_callback(_close_connection)
    task.cancel()


def _close_connection(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()
