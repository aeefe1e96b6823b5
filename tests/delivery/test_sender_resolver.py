"""These tests check requests to host names that do not resolve, and requests while the resolver does not respond."""
# Part of the tests of shortener/delivery/sender.py.

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from shortener.delivery.guard import Guard, domain_of
from shortener.delivery.guarded_resolver import MAX_LOOKUPS
from shortener.delivery.sender import Sender
from tests.delivery.receiver import hang_up, receiver, respond, then
from tests.delivery.sending import DEADLINE, GRACE, post
from tests.servers import PATIENCE


def failing(code: int) -> socket.gaierror:
    return socket.gaierror(code, "error of the resolver")


class Names:
    """A fake resolver. The prepared result for a name is a list of addresses, an error, or None.

    None means that the resolver does not respond until `released` is set."""

    def __init__(self, **answers: list[str] | Exception | None) -> None:
        self.answers = {name.replace("_", "."): value for name, value in answers.items()}
        self.released = threading.Event()

    def __call__(self, host: str, port: int) -> list[str]:
        found = self.answers[host]
        if found is None:
            self.released.wait(PATIENCE)
            return ["127.0.0.1"]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def fake_names() -> Iterator[Names]:
    names = Names(
        good_example=["127.0.0.1"],
        missing_example=failing(socket.EAI_NONAME),
        broken_example=failing(socket.EAI_AGAIN),
        silent_example=None,
    )
    yield names
    names.released.set()


@pytest.fixture
async def resolving_sender(fake_names: Names) -> AsyncIterator[Sender]:
    async with Sender(Guard(allow_private=True), user_agent="test", limit=4, lookup=fake_names) as sender:
        yield sender


async def test_a_request_to_a_name_that_does_not_exist_counts_as_an_attempt(resolving_sender: Sender) -> None:
    result = await post(resolving_sender, "http://missing.example/")
    assert (result.status, result.error, result.is_local) == (None, "dns_error", False)


@pytest.mark.parametrize("host", ["broken.example", "silent.example"])
async def test_a_request_is_a_local_failure_if_the_resolver_does_not_respond_at_all(resolving_sender: Sender, host: str) -> None:
    result = await post(resolving_sender, f"http://{host}/", DEADLINE)
    assert (result.status, result.error, result.is_local) == (None, "resolver_down", True)
    assert result.milliseconds < (DEADLINE + GRACE) * 1000


@pytest.mark.parametrize("host", ["broken.example", "silent.example"])
@pytest.mark.parametrize("other", ["good.example", "missing.example"])
async def test_a_request_to_an_unresolved_name_counts_as_an_attempt_if_the_resolver_works(
    resolving_sender: Sender, host: str, other: str
) -> None:
    await post(resolving_sender, f"http://{other}:1/")
    result = await post(resolving_sender, f"http://{host}/", DEADLINE)
    assert (result.status, result.error, result.is_local) == (None, "dns_error", False)


async def test_an_earlier_result_for_the_same_name_does_not_prove_that_the_resolver_works(
    resolving_sender: Sender, fake_names: Names
) -> None:
    await post(resolving_sender, "http://missing.example/")
    fake_names.answers["missing.example"] = failing(socket.EAI_AGAIN)
    assert (await post(resolving_sender, "http://missing.example/")).error == "resolver_down"


async def test_an_earlier_result_for_another_name_proves_that_the_resolver_works(
    resolving_sender: Sender, fake_names: Names
) -> None:
    await post(resolving_sender, "http://good.example:1/")
    await post(resolving_sender, "http://missing.example/")
    fake_names.answers["missing.example"] = failing(socket.EAI_AGAIN)
    assert (await post(resolving_sender, "http://missing.example/")).error == "dns_error"


async def test_the_sender_reports_the_most_specific_error_if_several_addresses_fail(
    resolving_sender: Sender, fake_names: Names
) -> None:
    fake_names.answers["good.example"] = ["::1", "127.0.0.1", "127.0.0.2"]
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        result = await post(resolving_sender, f"http://good.example:{bound.getsockname()[1]}/")
    assert (result.error, result.is_local) == ("connection_refused", False)


async def test_many_names_of_a_domain_whose_name_servers_hang_do_not_delay_requests_to_other_names(fake_names: Names) -> None:
    silent = [f"tracker{number}.silent.example" for number in range(2 * MAX_LOOKUPS)]
    fake_names.answers |= dict.fromkeys(silent, None)
    async with (
        Sender(Guard(allow_private=True), user_agent="test", limit=500, lookup=fake_names) as sender,
        receiver(respond(200)) as peer,
    ):
        results = await asyncio.gather(*(post(sender, f"http://{name}/", DEADLINE) for name in silent))
        assert {result.status for result in results} == {None}
        # The requests have timed out, but their look-ups still occupy threads.
        assert (await post(sender, f"http://good.example:{peer.port}/")).status == 200


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("a.b.Shop.example.", "shop.example"),
        ("shop.example", "shop.example"),
        ("a.b.shop.co.uk", "shop.co.uk"),
        ("a.shop.de", "shop.de"),
        ("localhost", "localhost"),
    ],
)
def test_the_domain_of_a_host_name_is_the_part_that_one_owner_controls(host: str, domain: str) -> None:
    assert domain_of(host) == domain


async def test_the_addresses_of_a_resolved_name_are_cached(resolving_sender: Sender, fake_names: Names) -> None:
    async with receiver(respond(200)) as peer:
        assert (await post(resolving_sender, f"http://good.example:{peer.port}/")).status == 200
        fake_names.answers["good.example"] = failing(socket.EAI_NONAME)
        peer.behaviour = then(respond(200), hang_up)
        assert (await post(resolving_sender, f"http://good.example:{peer.port}/")).status == 200
