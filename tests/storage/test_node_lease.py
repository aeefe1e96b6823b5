"""Tests of the node numbers of processes that share a PostgreSQL database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from shortener.ids import MAX_NODES
from shortener.storage.database import Database
from shortener.storage.node_lease import FIRST_COMMAND_NODE, NodeLease, random_command_node
from shortener.storage.open import open_database
from tests.conftest import new_postgresql_database


@pytest.fixture
async def database(postgresql: str, postgresql_template: str) -> AsyncIterator[Database]:
    database = await open_database(await new_postgresql_database(postgresql, postgresql_template), owner=True)
    yield database
    await database.close()


def lease(database: Database, numbers: list[int] | None = None) -> NodeLease:
    return NodeLease(database, (numbers if numbers is not None else []).append)


async def use_numbers(database: Database, count: int) -> None:
    """Advance the sequence of node numbers by `count`, as if `count` processes had started."""
    await database.write(lambda c: c.execute(text(f"SELECT nextval('nodes') FROM generate_series(1, {count})")))


async def expire(database: Database) -> None:
    await database.write(lambda c: c.execute(text("UPDATE node_leases SET until_ms = 0")))


async def test_a_node_number_in_use_is_skipped_after_the_sequence_restarts_at_its_first_value(database: Database) -> None:
    first, second = lease(database), lease(database)
    await first.step()
    await use_numbers(database, FIRST_COMMAND_NODE - 1)
    await second.step()
    assert second.node == (first.node + 1) % FIRST_COMMAND_NODE


async def test_processes_that_start_at_the_same_time_get_different_node_numbers(database: Database) -> None:
    leases = [lease(database) for _ in range(30)]
    await asyncio.gather(*(one.step() for one in leases))
    assert len({one.node for one in leases}) == 30
    assert all(0 <= one.node < FIRST_COMMAND_NODE for one in leases)


async def test_a_renewed_lease_keeps_its_node_number(database: Database) -> None:
    numbers: list[int] = []
    one = lease(database, numbers)
    for _ in range(3):
        await one.step()
    assert numbers == [one.node]


async def test_a_process_gets_a_new_node_number_if_another_process_leased_its_number(database: Database) -> None:
    numbers: list[int] = []
    late, other = lease(database, numbers), lease(database)
    await late.step()
    await expire(database)
    await use_numbers(database, FIRST_COMMAND_NODE - 1)
    await other.step()
    assert other.node == numbers[0], "the number was free"
    await late.step()
    assert late.node == numbers[1] != other.node
    await other.step()
    assert other.node == numbers[0]


async def test_an_expired_lease_of_a_node_number_is_renewed_if_no_other_process_leased_the_number(database: Database) -> None:
    numbers: list[int] = []
    one = lease(database, numbers)
    await one.step()
    await expire(database)
    await one.step()
    assert len(numbers) == 1


async def test_a_released_node_number_can_be_leased_again(database: Database) -> None:
    one, other = lease(database), lease(database)
    await one.step()
    await one.release()
    await use_numbers(database, FIRST_COMMAND_NODE - 1)
    await other.step()
    assert other.node == one.node


async def test_commands_use_node_numbers_that_are_never_leased(database: Database) -> None:
    assert all(FIRST_COMMAND_NODE <= random_command_node() < MAX_NODES for _ in range(1000))
    assert FIRST_COMMAND_NODE <= database.node < MAX_NODES
