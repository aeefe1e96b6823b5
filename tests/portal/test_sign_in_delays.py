"""Tests of the delays after failed sign-ins. Failures are counted in three ways: for a name in one network, for a network, and
for a name in all networks together."""

from __future__ import annotations

from datetime import timedelta

import pytest

from shortener.portal.sign_in_delays import FREE_FAILURES, KNOWN_DAYS, NAME_FAILURES, NETWORK_FAILURES, SignInDelays
from shortener.storage.database import Database
from tests.conftest import NOON

HOME, STRANGER = "192.0.2.0/24", "198.51.100.0/24"


@pytest.fixture
def delays() -> SignInDelays:
    return SignInDelays(b"key" * 8)


async def _fail(database: Database, delays: SignInDelays, times: int, network: str = STRANGER, name: str = "Ada") -> int:
    """Fail to sign in several times. Wait as long as each rejection requires. Return the seconds that the next attempt must
    wait."""
    at, done = NOON, 0
    while done < times:
        wait = await database.write(delays.begin_attempt, name, network, at)
        at += timedelta(seconds=wait)
        done += not wait
    return await database.write(delays.begin_attempt, name, network, at)


async def test_failed_sign_ins_from_one_network_do_not_delay_the_operator_in_another_network(
    database: Database, delays: SignInDelays
) -> None:
    assert await _fail(database, delays, FREE_FAILURES + 3) == 8
    assert await database.write(delays.begin_attempt, "ada", HOME, NOON) == 0


async def test_the_sign_in_delay_doubles_up_to_a_minute_and_a_correct_password_resets_the_delay(
    database: Database, delays: SignInDelays
) -> None:
    at = NOON
    for _ in range(FREE_FAILURES - 1):
        assert await database.write(delays.begin_attempt, "Ada", HOME, at) == 0
    waits = []
    for _ in range(8):
        assert await database.write(delays.begin_attempt, "Ada", HOME, at) == 0
        waits.append(await database.write(delays.begin_attempt, "Ada", HOME, at))
        at += timedelta(minutes=11)  # the count of the network's failures begins again after 10 minutes
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    await database.write(delays.succeed, "Ada", HOME, at)
    assert await database.write(delays.begin_attempt, "Ada", HOME, at) == 0


async def test_an_attack_from_many_networks_delays_only_networks_from_which_the_operator_never_signed_in(
    database: Database, delays: SignInDelays
) -> None:
    assert await database.write(delays.begin_attempt, "Ada", HOME, NOON) == 0
    await database.write(delays.succeed, "Ada", HOME, NOON)
    at = NOON + timedelta(days=1)
    for number in range(NAME_FAILURES + 1):
        await database.write(delays.begin_attempt, "Ada", f"10.0.{number}.0/24", at)
    assert await database.write(delays.begin_attempt, "Ada", "10.1.0.0/24", at) > 0
    assert await database.write(delays.begin_attempt, "Ada", HOME, at) == 0
    assert await database.write(delays.begin_attempt, "Bob", "10.1.0.0/24", at) == 0


async def test_a_network_without_a_sign_in_for_a_month_counts_as_unknown(database: Database, delays: SignInDelays) -> None:
    assert await database.write(delays.begin_attempt, "Ada", HOME, NOON) == 0
    await database.write(delays.succeed, "Ada", HOME, NOON)
    at = NOON + timedelta(days=KNOWN_DAYS + 1)
    for number in range(NAME_FAILURES + 1):
        await database.write(delays.begin_attempt, "Ada", f"10.0.{number}.0/24", at)
    assert await database.write(delays.begin_attempt, "Ada", HOME, at) > 0


async def test_sign_ins_from_a_network_that_failed_for_many_names_are_rejected_until_ten_minutes_have_passed(
    database: Database, delays: SignInDelays
) -> None:
    for number in range(NETWORK_FAILURES):
        assert await database.write(delays.begin_attempt, f"name {number}", STRANGER, NOON) == 0
    assert await database.write(delays.begin_attempt, "Ada", STRANGER, NOON) == 600
    assert await database.write(delays.begin_attempt, "Ada", HOME, NOON) == 0
    assert await database.write(delays.begin_attempt, "Ada", STRANGER, NOON + timedelta(minutes=10)) == 0


async def test_failed_sign_ins_before_the_clock_was_set_back_do_not_delay_the_operator_for_the_difference(
    database: Database, delays: SignInDelays
) -> None:
    assert await _fail(database, delays, FREE_FAILURES) == 1
    for number in range(NETWORK_FAILURES - FREE_FAILURES):
        assert await database.write(delays.begin_attempt, f"name {number}", STRANGER, NOON) == 0
    at = NOON - timedelta(days=30)
    assert await database.write(delays.begin_attempt, "Ada", STRANGER, at) == 0
    assert await database.write(delays.begin_attempt, "Ada", STRANGER, at) == 2
    assert await database.write(delays.begin_attempt, "Bob", STRANGER, at) == 0


async def test_sign_ins_that_need_a_code_do_not_delay_their_network_but_wrong_codes_do(
    database: Database, delays: SignInDelays
) -> None:
    for number in range(NETWORK_FAILURES + 1):
        name = f"name {number}"
        assert await database.write(delays.begin_attempt, name, HOME, NOON) == 0
        await database.write(delays.accept_password, HOME)
        assert await database.write(delays.begin_attempt, name, HOME, NOON) == 0
        await database.write(delays.succeed, name, HOME, NOON)
    for number in range(NETWORK_FAILURES):
        assert await database.write(delays.begin_attempt, f"other {number}", HOME, NOON) == 0
        await database.write(delays.accept_password, HOME)
        assert await database.write(delays.begin_attempt, f"other {number}", HOME, NOON) == 0
    assert await database.write(delays.begin_attempt, "Ada", HOME, NOON) == 600


async def test_a_correct_password_alone_does_not_reset_the_delay_of_wrong_codes(database: Database, delays: SignInDelays) -> None:
    for _ in range(FREE_FAILURES):
        assert await database.write(delays.begin_attempt, "Ada", HOME, NOON) == 0
        await database.write(delays.accept_password, HOME)
    assert await database.write(delays.begin_attempt, "Ada", HOME, NOON) == 1
