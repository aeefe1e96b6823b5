from pathlib import Path

import httpx
import pytest

from shortener.accounts.administration import update_application
from shortener.container import Service
from shortener.messages.sender_rules import FORMS, NO_NAMES, REGISTERED_NAMES, check_sender, country_problem
from tests.conftest import NOON
from tests.one_test import in_one_test

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "rewriting.md"
BODY = 'see #track("https://x.example/a")'


@in_one_test
@pytest.mark.parametrize(
    ("sender", "country", "problem"),
    [
        ("Gladiator", "US", "deliver only numbers"),
        ("Gladiator", "IN", "exactly 6"),
        ("GLADTR", "IN", "registered"),
        ("Gladiator", "SG", "registered"),
        ("Gladiator", "GB", None),
        ("Gladiator", None, None),
        ("18775550100", "US", None),
        ("+18775550100", "US", None),
        ("channel:7", "US", None),
        ("sender_id:7", "IN", None),
        ("", "US", None),
        ("1x", "US", None),
    ],
)
def test_the_rules_for_an_alphanumeric_sender_depend_on_the_country(sender: str, country: str | None, problem: str | None) -> None:
    found = country_problem(sender, country)
    assert (problem is None and found is None) or (problem is not None and found is not None and problem in found)


async def test_a_sender_that_the_networks_of_a_country_do_not_deliver_causes_a_warning_or_an_error(
    service: Service, client: httpx.AsyncClient
) -> None:
    request = {"to": ["+14085550100", "+447700900123"], "from": "Gladiator", "body": BODY}
    first, second = (await client.post("/api/v1/rewrite", json=request)).json()["messages"]
    assert [warning for warning in first["warnings"] if "US" in warning]
    assert second["warnings"] == []
    await service.database.write(update_application, 1, {"sender_rules": "reject"}, NOON)
    await service.directory.refresh()
    rejected = await client.post("/api/v1/rewrite", json=request)
    assert (rejected.status_code, rejected.json()["error_code"]) == (400, "SENDER_NOT_ALLOWED")
    assert rejected.json()["details"][0]["field"] == "from"
    form = await client.post("/api/v1/rewrite", json={"to": "+447700900123", "from": "1x", "body": BODY})
    assert form.json()["error_code"] == "SENDER_NOT_ALLOWED"
    assert (await client.post("/api/v1/rewrite", json=request | {"to": "+447700900123"})).status_code == 200


async def _reject_senders(service: Service) -> None:
    await service.database.write(update_application, 1, {"sender_rules": "reject"}, NOON)
    await service.directory.refresh()


async def test_only_the_recipients_whose_country_does_not_deliver_the_sender_are_refused(
    service: Service, client: httpx.AsyncClient
) -> None:
    await _reject_senders(service)
    request = {"to": ["+447700900123", "+14085550100", "+14085550101"], "from": "Gladiator", "body": BODY}
    skipped = (await client.post("/api/v1/rewrite", json=request | {"on_invalid": "skip"})).json()["messages"]
    assert [entry.get("error_code") for entry in skipped] == [None, "SENDER_NOT_ALLOWED", "SENDER_NOT_ALLOWED"]
    preview = (await client.post("/api/v1/rewrite/preview", json=request | {"on_invalid": "skip"})).json()["messages"]
    assert [entry.get("error_code") for entry in preview] == [None, "SENDER_NOT_ALLOWED", "SENDER_NOT_ALLOWED"]
    rejected = (await client.post("/api/v1/rewrite", json=request | {"message_id": ["too-few"]})).json()
    assert [(detail["field"], detail["recipient"]) for detail in rejected["details"]] == [
        ("message_id", None),
        ("from", 1),
        ("from", 2),
    ]


@pytest.mark.parametrize("sender", ["Gladiator", "1x"])
async def test_a_repeated_message_gets_its_first_response_after_the_application_began_to_reject_its_sender(
    service: Service, client: httpx.AsyncClient, sender: str
) -> None:
    request = {"to": "+14085550100", "from": sender, "body": BODY, "message_id": "m-1"}
    first = await client.post("/api/v1/rewrite", json=request)
    await _reject_senders(service)
    repeat = await client.post("/api/v1/rewrite", json=request)
    assert (repeat.status_code, repeat.json()) == (200, first.json())
    other = await client.post("/api/v1/rewrite", json=request | {"message_id": "m-2"})
    assert (other.status_code, other.json()["error_code"]) == (400, "SENDER_NOT_ALLOWED")


def test_the_rewriting_page_lists_the_countries_with_rules_for_senders() -> None:
    text = PAGE.read_text()
    for countries in (NO_NAMES, REGISTERED_NAMES, FORMS):
        assert " ".join(sorted(countries)) in text


@pytest.mark.parametrize(
    "sender",
    [
        "123",
        "72345",
        "18775550100",
        "+18775550100",
        "ABC",
        "InfoSMS",
        "Gladiator1",
        "a2345678901",
        "channel:Bxn9SHBYhl89KnXXXXXXXX",
        "sender_id:EjihJOXWJE24O",
    ],
)
def test_the_sender_check_returns_no_reason_for_rejection_for_a_usual_sender_id(sender: str) -> None:
    assert check_sender(sender) is None


@in_one_test
@pytest.mark.parametrize(
    "sender",
    [
        "",
        "12",
        "+12",
        "1234567890123456",
        "AB",
        "1Shop",
        "My Shop",
        "Shöp",
        "Shop\n",
        "ABCDEFGHIJKL",
        "٣٣٣",
        "channel:",
        "channel: x",
        "x:1",
    ],
)
def test_the_sender_check_returns_the_reason_why_carriers_may_reject_an_unusual_sender_id(sender: str) -> None:
    assert check_sender(sender) == "is neither a number of 3 to 15 digits nor 3 to 11 letters and digits that start with a letter"
