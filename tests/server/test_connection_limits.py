"""Tests of the maximum number of connections from one address, and from all addresses together."""

from __future__ import annotations

import ipaddress
import resource
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from shortener.server.connection_limits import ConnectionLimits

PROXIES = (ipaddress.ip_network("10.1.0.0/16"),)


def limits(per_address: int = 3) -> ConnectionLimits:
    return ConnectionLimits(per_address, PROXIES, 4096)


def test_connections_from_one_address_above_the_limit_are_rejected() -> None:
    counted = limits()
    with capture_logs() as logs:
        assert [counted.admit("192.0.2.1", ()) for _ in range(5)] == [True, True, True, False, False]
    assert [(line["event"], line["refused"], line["limit"]) for line in logs] == [("too_many_connections", 1, 3)]
    assert counted.admit("192.0.2.2", ())
    counted.release("192.0.2.1")
    assert counted.admit("192.0.2.1", ())
    assert not counted.admit("192.0.2.1", ())


def test_all_addresses_in_one_ipv6_network_share_one_connection_limit() -> None:
    counted = limits()
    assert [counted.admit(f"2001:db8::{n}", ()) for n in range(1, 5)] == [True, True, True, False]
    assert counted.admit("2001:db8:0:1::1", ())


@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3", "127.0.0.1", "::1", None, "unix"])
def test_trusted_proxies_and_programs_on_this_machine_have_no_connection_limit(peer: str | None) -> None:
    counted = limits()
    assert all(counted.admit(peer, ()) for _ in range(100))
    counted.release(peer)


def test_one_address_cannot_use_more_than_half_of_all_connections() -> None:
    counted = ConnectionLimits(4096, (), 1024)
    assert (counted.total, counted.per_address) == (768, 384)


class Connection:
    def __init__(self, waiting_since: float | None) -> None:
        self.waiting_since = waiting_since
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_above_the_total_connection_limit_the_connections_that_waited_longest_for_a_request_are_closed() -> None:
    counted = limits()
    connections = [Connection(None), *(Connection(float(n)) for n in range(counted.total))]
    with capture_logs() as logs:
        assert counted.admit("127.0.0.1", connections)
    closed = [one for one in connections if one.is_closed]
    assert closed == connections[1 : 1 + len(connections) // 16]
    assert logs[0]["event"] == "connections_closed_for_others"


def test_the_limit_of_open_files_is_raised_to_the_maximum_of_the_system() -> None:
    script = (
        "import resource\n"
        "from shortener.server.connection_limits import raise_open_files_limit\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 600))\n"
        "print(raise_open_files_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "600 (600, 600)\n"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 256
