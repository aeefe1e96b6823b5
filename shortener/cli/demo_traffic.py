"""This module creates three weeks of realistic traffic for a demo installation: campaigns, countries, bots, failures and
conversions.

It sends real requests to the application in this process, so every row is written by the service itself. The clock of the
application moves through the three weeks. The same `seed` creates the same traffic. With receivers, the installation also has
trackers and a gateway, whose requests go to this machine (demo_receivers.py). Nothing is sent to other machines.
"""
# Tested by tests/cli/test_demo_traffic.py

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortener.cli.demo_receivers import GATEWAY, TRACKERS, demo_receivers
from shortener.model import record, utcnow

if TYPE_CHECKING:
    import httpx

    from shortener.container import Service

DAYS = 21
#: The gateway of the demo sends the messages whose number is a multiple of this number. All other messages are only rewritten.
GATEWAY_SHARE = 25


class DemoClock:
    """The clock of the service in the demo, which is set to the time of each simulated event."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


#: For each country: the beginning of a mobile number, the number of digits that follow it, and the country's share of the messages.
_COUNTRIES = {
    "DE": ("+491512", 7, 34),
    "FR": ("+33612", 6, 21),
    "GB": ("+447400", 6, 16),
    "ES": ("+34612", 6, 11),
    "US": ("+1408555", 4, 9),
    "NL": ("+31612", 6, 6),
    "BR": ("+5511987", 6, 3),
}
_PHONES = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Mobile/15E148 "
    "Safari/604.1",
    "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Linux; Android 14; SM-S921B) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/27.0 Chrome/125.0.0.0 Mobile "
    "Safari/537.36",
    "Mozilla/5.0 (iPad; CPU OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 "
    "Safari/604.1",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36",
)
_PHONE_SHARES = (46, 29, 14, 5, 6)
_PREVIEW = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_11_1) AppleWebKit/601.2.4 (KHTML, like Gecko) Version/9.0.1 Safari/601.2.4 "
    "facebookexternalhit/1.1 Facebot Twitterbot/1.0"
)


@record
class DemoCampaign:
    """A campaign of the demo. `day` and `hour` say when it was sent. If `day` is None, it is sent every day at working hours.
    `share` is the fraction of all messages that belongs to the campaign. `click_share` is the fraction of its delivered messages
    whose links people click."""

    name: str
    body: str
    day: int | None
    hour: int
    share: float
    click_share: float
    conversion_share: float
    value: float
    source: str = "campaign"


CAMPAIGNS = (
    DemoCampaign(
        "order-updates",
        'Your order is on its way. Follow it here: #trackurl("https://shop.example/orders/track?o={n}","tracking")',
        None,
        9,
        0.34,
        0.52,
        0.0,
        0,
        "api",
    ),
    DemoCampaign(
        "autumn-sale",
        'Autumn sale: 20 % off jackets until Sunday. #trackurl("https://shop.example/sale/jackets?c=autumn","jackets")',
        3,
        10,
        0.26,
        0.19,
        0.16,
        79,
    ),
    DemoCampaign(
        "win-back",
        'We miss you! 10 EUR for your next order: #track("https://shop.example/welcome-back")',
        11,
        17,
        0.14,
        0.09,
        0.11,
        42,
    ),
    DemoCampaign(
        "black-friday",
        'Black Friday starts now. #trackurl("https://shop.example/black-friday","shop") or '
        '#trackurl("https://shop.example/black-friday/vip","vip")',
        19,
        8,
        0.26,
        0.27,
        0.22,
        112,
    ),
)


@dataclass(order=True, slots=True)
class _Step:
    at: datetime
    number: int
    action: str = field(compare=False)
    values: dict[str, Any] = field(compare=False, default_factory=dict)


async def fill_installation(folder: str | Path, messages: int = 900, receivers: str | None = None) -> None:
    """Create an installation in a folder, with traffic that ends now. `receivers` is the base URL of `demo_receivers` if they
    already run. If it is None, this function starts receivers, and stops them after the traffic is created."""
    from shortener.container import open_service
    from shortener.settings import Settings

    end = utcnow().replace(microsecond=0)
    clock = DemoClock(start_of_traffic(end))
    service = await open_service(Settings(data_dir=Path(folder), allow_private_targets=True), clock=clock)
    service.recorder.start()
    clock.now = end
    credentials = service.first_credentials
    if credentials is not None:
        with contextlib.nullcontext(receivers) if receivers else demo_receivers() as address:
            await fill(service, clock, credentials.api_key, credentials.tracker_token, messages=messages, receivers=address)
    await service.close()


async def fill(
    service: Service,
    clock: DemoClock,
    api_key: str,
    tracker_token: str,
    *,
    messages: int = 900,
    seed: int = 7,
    receivers: str | None = None,
) -> None:
    """Create the traffic of the last DAYS days before the current time of the clock.

    The service must be opened with this clock. Its application should be created at `start_of_traffic`, when the traffic begins.
    `receivers` is the base URL of the demo's trackers; if it is None, the demo has no trackers."""
    import httpx

    from shortener.reporting.counts import fold
    from shortener.server.application import HttpApplication

    end = clock.now
    transport = httpx.ASGITransport(HttpApplication(service))
    links: dict[str, list[str]] = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        if receivers is not None:
            clock.now = start_of_traffic(end)
            await _create_endpoints(client, receivers, api_key)
            clock.now = end
        for step in sorted(_steps(end, messages, random.Random(seed))):  # noqa: S311 - the traffic of a demo
            if step.at >= end:
                break
            clock.now = max(clock.now if clock.now < end else step.at, step.at)
            await _perform(client, step, links, api_key, tracker_token, has_gateway=receivers is not None)
            if receivers is not None:
                await _deliver(service)
    clock.now = end
    # Run the fan-out even without trackers, because it also counts the times from sending to click.
    await service.fanout.flush()
    if receivers is not None:
        await _deliver(service)
    while await service.database.write(fold):
        pass
    await service.devices.catch_up()


async def _create_endpoints(client: httpx.AsyncClient, receivers: str, api_key: str) -> None:
    """Create the trackers and the gateway of the demo."""
    headers = {"X-API-Key": api_key}
    for tracker in TRACKERS:
        fields = {**tracker, "url": tracker["url"].replace("{receivers}", receivers)}
        (await client.post("/api/v1/trackers", json=fields, headers=headers)).raise_for_status()
    gateway = {"name": GATEWAY, "preset": "plain", "options": {"url": f"{receivers}/gateway"}}
    (await client.post("/api/v1/gateways", json=gateway, headers=headers)).raise_for_status()


async def _deliver(service: Service) -> None:
    """Send all messages and deliveries that are due at the time of the clock."""
    await service.gateway_dispatcher.flush()
    await service.fanout.flush()
    await service.dispatcher.flush()


async def _perform(
    client: httpx.AsyncClient, step: _Step, links: dict[str, list[str]], api_key: str, token: str, *, has_gateway: bool
) -> None:
    values = step.values
    message_id = values["message_id"]
    if step.action == "rewrite":
        if has_gateway and step.number % GATEWAY_SHARE == 0:
            values = {**values, "gateway": GATEWAY}
        response = await client.post("/api/v1/rewrite", json=values, headers={"X-API-Key": api_key})
        response.raise_for_status()
        links[message_id] = [link["code"] for link in response.json()["messages"][0]["links"]]
    elif step.action == "report":
        response = await client.post("/api/v1/sms/status", json=values, headers={"X-API-Key": api_key})
        response.raise_for_status()
    elif step.action == "hit":
        codes = links[message_id]
        code = codes[values["link"] % len(codes)]
        await client.request(values["method"], f"/{code}", headers={"User-Agent": values["agent"]})
    else:
        await client.post("/api/v1/track", json=values, headers={"X-Api-Token": token})


def start_of_traffic(end: datetime) -> datetime:
    """Return the time at which the traffic begins."""
    return (end - timedelta(days=DAYS)).replace(hour=0, minute=0, second=0, microsecond=0)


def _steps(end: datetime, messages: int, rng: random.Random) -> Iterator[_Step]:
    start = (end - timedelta(days=DAYS)).replace(minute=0, second=0, microsecond=0)
    number = 0
    for campaign in CAMPAIGNS:
        for index in range(round(messages * campaign.share)):
            number += 1
            if campaign.day is None:
                at = start + timedelta(days=rng.random() * DAYS)
                at = at.replace(hour=min(max(int(rng.gauss(14, 3.5)), 6), 21))
            else:
                at = start.replace(hour=campaign.hour) + timedelta(days=campaign.day, seconds=index * 2)
            yield from _life(campaign, f"demo-{number:05d}", number, at, rng)


def _life(campaign: DemoCampaign, message_id: str, number: int, at: datetime, rng: random.Random) -> Iterator[_Step]:
    """Yield the simulated events of one message: delivery reports, hits and conversions, each with its time."""
    country = rng.choices(list(_COUNTRIES), [share for _, _, share in _COUNTRIES.values()])[0]
    begin, digits, _ = _COUNTRIES[country]
    to = begin + "".join(rng.choice("0123456789") for _ in range(digits))
    body = campaign.body.replace("{n}", str(10_000 + number))
    fields = {
        "to": to,
        "message_id": message_id,
        "body": body,
        "campaign": campaign.name,
        "source": campaign.source,
        "from": "Shop",
    }
    yield _Step(at, number, "rewrite", fields)
    yield _Step(at + timedelta(seconds=2), number, "report", {"message_id": message_id, "state": "SENT"})
    fate = rng.random()
    arrival = at + timedelta(seconds=2 + rng.lognormvariate(2, 0.8))
    if fate < 0.035:
        reason = {"state": "FAILED", "reason_code": "103", "reason_description": "Absent subscriber"}
        yield _Step(arrival, number, "report", {"message_id": message_id, **reason})
        return
    if fate < 0.97:
        yield _Step(arrival, number, "report", {"message_id": message_id, "state": "DELIVERED"})
    if rng.random() < 0.07:
        scan = {"message_id": message_id, "link": 0, "method": "GET", "agent": _PREVIEW}
        yield _Step(arrival + timedelta(seconds=rng.random() * 3), number, "hit", scan)
    if rng.random() < 0.03:
        scan = {"message_id": message_id, "link": 0, "method": "HEAD", "agent": _PHONES[1]}
        yield _Step(arrival + timedelta(seconds=rng.random() * 2), number, "hit", scan)
    if rng.random() >= campaign.click_share:
        return
    agent = rng.choices(_PHONES, _PHONE_SHARES)[0]
    click = arrival + timedelta(seconds=15 + rng.lognormvariate(6.2, 1.9))
    link = 0 if rng.random() < 0.7 else 1
    yield _Step(click, number, "hit", {"message_id": message_id, "link": link, "method": "GET", "agent": agent})
    while rng.random() < 0.22:
        click += timedelta(seconds=20 + rng.lognormvariate(5, 2))
        yield _Step(click, number, "hit", {"message_id": message_id, "link": link, "method": "GET", "agent": agent})
    if rng.random() < campaign.conversion_share:
        value = f"{campaign.value * rng.uniform(0.4, 1.9):.2f}"
        report = {"message_id": message_id, "action": "sale", "transaction_id": f"T-{number}", "value": value, "currency": "EUR"}
        sold = click + timedelta(seconds=60 + rng.lognormvariate(6, 1))
        decided = rng.random()
        # The simulated shop reports each sale as pending. Within two days, it reports most sales as approved or rejected.
        yield _Step(sold, number, "conversion", {**report, "status": "pending"})
        if decided < 0.85:
            status = "approved" if decided < 0.7 else "rejected"
            yield _Step(sold + timedelta(hours=6 + 30 * rng.random()), number, "conversion", {**report, "status": status})
    elif rng.random() < campaign.conversion_share:
        lead = {"message_id": message_id, "action": "newsletter", "transaction_id": f"L-{number}", "status": "lead"}
        yield _Step(click + timedelta(seconds=40 + 200 * rng.random()), number, "conversion", lead)
    elif rng.random() < 0.02:
        yield _Step(click + timedelta(minutes=5), number, "conversion", {"message_id": "{message_id}", "action": "sale"})
