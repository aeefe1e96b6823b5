"""Tests of background updates of many links: which links they select, their exact counts, their progress, how they are stopped,
and how they continue after a crash."""

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from shortener.accounts.administration import create_application
from shortener.clicks import link_updates as module
from shortener.clicks.link_updates import LinkUpdates
from shortener.container import Service
from shortener.errors import StoreUnavailable
from shortener.ids import LINK_UPDATE_IDS
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS as PHONE
from tests.conftest import Clock, MakeService, client_of
from tests.factory import audited_rows
from tests.one_service import on_one_service
from tests.servers import PATIENCE, RedisProcess

PATH = "/api/v1/links/update"
BODY = '#trackurl("https://x.example/menu","menu") #track("https://x.example/shop")'


async def send(client: httpx.AsyncClient, number: int, **more: Any) -> list[str]:
    """Rewrite messages for some recipients, and return the codes of their links."""
    numbers = [f"+1408555{index:04d}" for index in range(100, 100 + number)]
    response = await client.post("/api/v1/rewrite", json={"to": numbers, "body": BODY, **more})
    return [link["code"] for message in response.json()["messages"] for link in message["links"]]


async def create(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post(PATH, json=body)
    assert response.status_code == 202, response.text
    return dict(response.json()["update"])


async def finish(service: Service, client: httpx.AsyncClient, update_id: str) -> dict[str, Any]:
    while await service.link_updates.step():
        pass
    return dict((await client.get(f"/api/v1/links/updates/{update_id}")).json()["update"])


async def destinations(service: Service) -> dict[str, str]:
    return {row.code: row.url for row in await service.database.read(lambda c: c.execute(select(schema.links)).all())}


@pytest.mark.parametrize(
    ("selection", "selects"),
    [
        ({"campaign": "one"}, lambda campaign, is_menu: campaign == "one"),
        ({"destination": "https://X.example/shop"}, lambda campaign, is_menu: not is_menu),
        ({"label": "menu"}, lambda campaign, is_menu: is_menu),
        ({"campaign": "one", "label": "menu"}, lambda campaign, is_menu: campaign == "one" and is_menu),
        ({"campaign": 7}, lambda campaign, is_menu: False),
    ],
)
async def test_an_update_of_many_links_changes_exactly_the_selected_links(
    client: httpx.AsyncClient, service: Service, selection: dict[str, Any], selects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_MESSAGES", 3)
    # On a busy machine, counting the links may take more than the default limit of a second.
    monkeypatch.setattr("shortener.web.link_updates.COUNT_SECONDS", 60.0)
    codes = {campaign: await send(client, 5, campaign=campaign) for campaign in ("one", "two")}
    codes["one"] += await send(
        client, 4, campaign="one", source="campaign"
    )  # these messages have another source, so they belong to another cohort
    expected = {code for campaign, found in codes.items() for place, code in enumerate(found) if selects(campaign, place % 2 == 0)}
    created = await create(client, **selection, url="https://new.example/{code}")
    assert (created["state"], created["total"], created["done"]) == ("running", len(expected), 0)
    late = await send(client, 2, campaign="one")
    done = await finish(service, client, created["update_id"])
    assert (done["state"], done["total"], done["done"], done["changed"]) == ("done", *[len(expected)] * 3)
    found = await destinations(service)
    assert {code for code, url in found.items() if url.startswith("https://new.example/")} == expected
    assert not expected & set(late), "links that were created later are not part of it"
    for code in list(expected)[:1]:
        assert (await client.get(f"/{code}", headers=PHONE)).headers["location"] == f"https://new.example/{code}"
        history = (await client.get(f"/api/v1/links/{code}")).json()["link"]["history"]
        assert [(entry["by"], set(entry["changes"])) for entry in history] == [("key 1", {"url"})]
    assert [one["update_id"] for one in (await client.get("/api/v1/links/updates")).json()["updates"]] == [created["update_id"]]


async def test_a_stopped_update_of_many_links_does_not_undo_its_changes(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_MESSAGES", 2)
    monkeypatch.setattr("shortener.web.link_updates.COUNT_SECONDS", PATIENCE)
    await send(client, 6, campaign="one")
    created = await create(client, campaign="one", enabled=False)
    assert await service.link_updates.perform(LINK_UPDATE_IDS.decode(created["update_id"]) or 0, seconds=0.0001) == 1
    stopped = (await client.post(f"/api/v1/links/updates/{created['update_id']}/stop")).json()["update"]
    assert (stopped["state"], stopped["total"], stopped["done"], stopped["changed"]) == ("stopped", 12, 4, 4)
    assert await finish(service, client, created["update_id"]) == stopped
    disabled = (await client.get("/api/v1/links", params={"enabled": "false"})).json()["links"]
    assert len(disabled) == 4


async def test_another_process_continues_an_update_of_links_after_its_lease_expires(
    client: httpx.AsyncClient, service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_MESSAGES", 2)
    await send(client, 6, campaign="one")
    created = await create(client, campaign="one", url="https://new.example/")
    update_id = LINK_UPDATE_IDS.decode(created["update_id"]) or 0

    class Lost(Exception):
        pass

    lost = LinkUpdates(service.database, service.cache, service.ids, clock)

    async def crash(row: Any) -> None:
        raise Lost

    await lost.perform(update_id, seconds=0.0001)
    monkeypatch.setattr(lost, "_perform_batch", crash)
    with pytest.raises(Lost):
        await lost.perform(update_id)
    assert await service.link_updates.step() == 0, "the lease of the lost process has not ended"
    clock.forward(seconds=module.LEASE / timedelta(seconds=1) + 1)
    done = await finish(service, client, created["update_id"])
    assert (done["state"], done["done"], done["changed"]) == ("done", 12, 12)
    rows = await service.database.read(lambda c: c.execute(select(schema.link_changes)).all())
    assert len({row.link_id for row in rows}) == len(rows) == 12, "each link has one entry in its history"


@pytest.mark.parametrize("is_down", [False, True])
async def test_the_links_of_a_stopped_update_stay_in_the_link_cache(
    make_service: MakeService, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch, is_down: bool
) -> None:
    monkeypatch.setattr("shortener.web.link_updates.COUNT_SECONDS", PATIENCE)
    service = await make_service(redis_url=redis_server.url, redis_timeout=5)
    assert service.first_credentials
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
        codes = await send(client, 2, campaign="one")
        created = await create(client, campaign="one", url="https://new.example/")
        updates, invalidate, cached = service.link_updates, service.cache.invalidate, await service.cache.find(codes)
        assert set(cached) == set(codes)

        async def stop() -> None:
            await client.post(f"{PATH}s/{created['update_id']}/stop")

        async def invalidate_and_stop(invalidated: list[str]) -> bool:
            await stop()
            return await invalidate(invalidated)

        def fail(*_: Any) -> None:
            raise StoreUnavailable("the database is down")

        if is_down:
            with monkeypatch.context() as patch:
                patch.setattr(updates, "_change", fail)
                with pytest.raises(StoreUnavailable):
                    await updates.step()
            assert await service.cache.find(codes) == {}
            await stop()
        else:
            monkeypatch.setattr(service.cache, "invalidate", invalidate_and_stop)
        await updates.step()
        assert await service.cache.find(codes) == cached


async def test_another_process_continues_an_update_of_links_after_the_clock_was_set_back(
    client: httpx.AsyncClient, service: Service, clock: Clock
) -> None:
    await send(client, 2, campaign="one")
    created = await create(client, campaign="one", url="https://new.example/")
    lost = LinkUpdates(service.database, service.cache, service.ids, clock)
    assert await service.database.write(lost._claim, LINK_UPDATE_IDS.decode(created["update_id"]) or 0)
    assert await service.link_updates.step() == 0, "the lost process has the lease"
    clock.forward(hours=-1)
    done = await finish(service, client, created["update_id"])
    assert (done["state"], done["changed"]) == ("done", 4)


async def test_two_processes_share_the_work_of_one_update_of_links(
    client: httpx.AsyncClient, service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_MESSAGES", 2)
    await send(client, 20, campaign="one")
    created = await create(client, campaign="one", url="https://new.example/")
    update_id = LINK_UPDATE_IDS.decode(created["update_id"]) or 0
    processes = service.link_updates, LinkUpdates(service.database, service.cache, service.ids, clock)
    batches = [0, 0]
    for _ in range(8):  # the processes take turns: each performs one batch and then releases its lease
        for number, process in enumerate(processes):
            batches[number] += await process.perform(update_id, seconds=0.0001)
    assert min(batches) >= 5, batches
    await asyncio.gather(*(process.step() for process in processes for _ in range(4)))
    done = await finish(service, client, created["update_id"])
    assert (done["state"], done["total"], done["done"], done["changed"]) == ("done", 40, 40, 40)
    rows = await service.database.read(lambda c: c.execute(select(schema.link_changes)).all())
    assert len(rows) == 40


@pytest.mark.parametrize("destination", ["http://[2001:db8:0:0::1]/x", "http://[2001:db8::1]/x"])
async def test_links_with_an_ipv6_address_that_an_earlier_version_stored_as_it_was_written_are_listed_and_updated(
    client: httpx.AsyncClient, service: Service, destination: str
) -> None:
    codes = await send(client, 2, campaign="one")
    c = schema.links.c
    old = update(schema.links).where(c.code == codes[0]).values(url=destination)
    await service.database.write(lambda connection: connection.execute(old) and None)
    listed = (await client.get("/api/v1/links", params={"url": destination})).json()["links"]
    assert [one["code"] for one in listed] == [codes[0]]
    created = await create(client, destination=destination, enabled=False)
    assert (created["filter"]["url"], created["total"]) == (destination, 1)
    assert (await finish(service, client, created["update_id"]))["changed"] == 1


async def test_a_short_update_of_links_does_not_wait_for_a_long_one_of_another_application(
    client: httpx.AsyncClient, service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_MESSAGES", 2)
    updates = service.link_updates
    # with this time limit, each step performs one batch
    monkeypatch.setattr(updates, "perform", partial(updates.perform, seconds=0.0001))
    other = await service.database.write(create_application, "other", clock())
    await service.directory.refresh()
    await send(client, 20, campaign="one")
    long = await create(client, campaign="one", enabled=False)
    async with client_of(service, {"X-API-Key": other.api_key}) as second:
        await send(second, 1, campaign="one")
        short = await create(second, campaign="one", enabled=False)
        for _ in range(12):
            await updates.step()
        assert (await second.get(f"/api/v1/links/updates/{short['update_id']}")).json()["update"]["state"] == "done"
    assert (await client.get(f"/api/v1/links/updates/{long['update_id']}")).json()["update"]["state"] != "done"
    assert (await finish(service, client, long["update_id"]))["changed"] == 40


async def test_the_updates_of_links_of_one_application_are_performed_one_after_the_other_so_that_the_latest_decides(
    client: httpx.AsyncClient, service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_MESSAGES", 2)
    await send(client, 6, campaign="one")
    wrong = await create(client, campaign="one", url="https://wrong.example/")
    corrected = await create(client, campaign="one", url="https://right.example/")
    assert corrected["total"] == 12, "the links are counted at once"
    first, second = (LINK_UPDATE_IDS.decode(one["update_id"]) or 0 for one in (wrong, corrected))
    other = LinkUpdates(service.database, service.cache, service.ids, clock)
    assert await service.link_updates.perform(first, seconds=0.0001) == 1
    assert await other.perform(second) == 0, "the update waits for the earlier update"
    while await service.link_updates.step() or await other.step():
        pass
    assert set((await destinations(service)).values()) == {"https://right.example/"}
    done = await finish(service, client, corrected["update_id"])
    assert (done["state"], done["changed"]) == ("done", 12)


@on_one_service
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "https://new.example/"}, "campaign"),
        ({"campaign": "one"}, "url"),
        ({"campaign": "one", "url": "ftp://x"}, "url"),
        ({"campaign": "one", "expires_at": "0001-01-01T00:00:00Z"}, "expires_at"),
    ],
)
async def test_an_update_of_links_without_a_selection_or_a_change_is_rejected(
    client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    response = await client.post(PATH, json=body)
    assert (response.status_code, response.json()["details"][0]["field"]) == (400, field)
    assert (await client.get("/api/v1/links/updates")).json()["updates"] == []


async def test_link_updates_of_another_application_return_404(client: httpx.AsyncClient, service: Service, clock: Clock) -> None:
    from shortener.accounts.administration import create_application

    created = await create(client, label="x", enabled=True)
    other = await service.database.write(create_application, "other", clock())
    await service.directory.refresh()
    async with client_of(service, {"X-API-Key": other.api_key}) as stranger:
        assert (await stranger.get(f"/api/v1/links/updates/{created['update_id']}")).status_code == 404
        assert (await stranger.post(f"/api/v1/links/updates/{created['update_id']}/stop")).status_code == 404
        assert (await stranger.get("/api/v1/links/updates")).json()["updates"] == []


async def test_an_update_of_links_that_fails_is_stopped_and_the_later_updates_are_performed(
    client: httpx.AsyncClient, service: Service
) -> None:
    """An earlier version stored times before the year 1000 in a format that the current version cannot read. An update with such
    a time fails."""
    await send(client, 1, campaign="one")
    await send(client, 1, campaign="two")
    failing = await create(client, campaign="one", expires_at="2026-12-24T00:00:00Z")
    unreadable = update(schema.link_updates).values(changes={"expires_at": "1-01-01T00:00:00Z"})
    await service.database.write(lambda connection: connection.execute(unreadable) and None)
    later = await create(client, campaign="two", enabled=False)
    with pytest.raises(ValueError, match="must be a date"):
        await service.link_updates.step()
    done = await finish(service, client, later["update_id"])
    assert (done["state"], done["done"], done["changed"]) == ("done", 2, 2)
    stopped = await finish(service, client, failing["update_id"])
    assert (stopped["state"], stopped["done"], stopped["changed"]) == ("stopped", 0, 0)
    assert stopped["finished_at"] is not None
    (row,) = [row for row in await audited_rows(service.database) if row.action == "links_update_stopped"]
    assert (row.operator, row.object, row.application_id, row.after) == (
        "background job",
        failing["update_id"],
        1,
        {"reason": "failed"},
    )


async def test_an_unavailable_database_does_not_stop_an_update_of_links(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(client, 1, campaign="one")
    created = await create(client, campaign="one", enabled=False)

    async def fail(row: Any) -> None:
        raise StoreUnavailable("down")

    with monkeypatch.context() as patched:
        patched.setattr(service.link_updates, "_perform_batch", fail)
        with pytest.raises(StoreUnavailable):
            await service.link_updates.step()
    assert (await finish(service, client, created["update_id"]))["state"] == "done"
