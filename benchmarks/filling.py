"""Fills a database for benchmarks with messages of one link each that look sent, delivered and clicked.

The rows are those that the service would have written, but without the events of delivery reports. Functions of the service write
the counts: count deltas, `counts.fold`, and the job that counts devices. Therefore `shortener verify` finds no difference in a
filled database.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import orjson
from sqlalchemy import Connection

from benchmarks import rig
from shortener.clicks.device_counts import DeviceCounter
from shortener.clicks.hit_metrics import CLICKED_LINKS, CLICKED_MESSAGES, CLICKS
from shortener.ids import IdGenerator, encode, first_id_at, new_message_id
from shortener.messages.codes import Codes
from shortener.model import DeliveryStatus, HitFlag, State, Topic, Verdict
from shortener.outbox import count_deltas
from shortener.outbox.count_deltas import Cohorts, CountDelta, time_to_click
from shortener.outbox.link_sets import LinkSets, link_set_key
from shortener.reporting import counts
from shortener.secret import Secret
from shortener.storage import schema
from shortener.storage.bulk import BulkInsert
from shortener.storage.database import Database
from shortener.storage.types import to_ms

SECRET = "the secret of a benchmark protects nothing 0123456789"
BATCH_MESSAGES = 20_000  # messages per transaction
RETENTION_DAYS = 90
DAY_MS = 86_400_000
MAX_CLICK_MS = 40_000_000  # each click follows its message within this time
ALL_ORIGINS = 1_000_000_000  # no limit for the origins in one run of `fold`, because no clicks wait for the run
DEVICE_DELTAS_PER_FOLD = 10  # the number of count deltas of the device job that one run of `fold` adds
CAMPAIGN = "spring"
DESTINATION = "https://shop.example/campaigns/spring"

insert_messages = BulkInsert(
    schema.messages,
    *("id", "application_id", "cohort_id", "message_id", "request_id", "external_request_id", "content_hash", "to_address"),
    *("from_address", "sender_id_id", "sender_id_alias", "state", "created_at", "sent_at", "delivered_at", "encoding", "segments"),
    *("mt_price", "link_set_id"),
)
insert_first_clicks = BulkInsert(schema.first_clicks, "id", "at", "hit_id", "links")
insert_links = BulkInsert(
    schema.links,
    *(
        "id",
        "code",
        "message_id",
        "application_id",
        "cohort_id",
        "domain_id",
        "position",
        "flags",
        "url",
        "expires_at",
        "link_set_id",
    ),
)
insert_hits = BulkInsert(schema.hits, "id", "link_id", "at", "verdict", "rule", "flags", "address", "user_agent")
insert_events = BulkInsert(
    schema.events,
    *("id", "application_id", "topics", "at", "message_id", "link_id", "hit_id", "facts", "fanned_out"),
)
insert_deliveries = BulkInsert(
    schema.deliveries,
    *("id", "event_id", "topic", "application_id", "tracker_id", "lane", "status", "attempt", "next_at", "created_at"),
    *("finished_at", "last_status"),
)
insert_attempts = BulkInsert(schema.attempts, "id", "delivery_id", "attempt", "at", "milliseconds", "status", "answer")


class Rows:
    """A writer of messages and their rows. The messages are sent at intervals of `interval_ms` from `start_ms` on. `clicked` is
    the share of clicked messages. All messages belong to one cohort and have the same link set, whose ids are parameters."""

    def __init__(self, start_ms: int, interval_ms: float, clicked: float, cohort: int, link_set: int) -> None:
        self._start_ms = start_ms
        self._interval_ms = interval_ms
        self._clicked = clicked
        self._cohort = cohort
        self._link_set = link_set
        self._ids = IdGenerator(0)
        self._chance = random.Random(1)
        self._codes = Codes(Secret(SECRET).code_salt, randbits=self._chance.getrandbits)
        self.codes: list[str] = []
        self._used: set[str] = set()

    def _mint(self) -> str:
        """Return a link code that was not used yet. In one of six runs of 10 million links, a random code occurs twice."""
        while (code := self._codes.mint()) in self._used:
            pass
        self._used.add(code)
        self.codes.append(code)
        return code

    def write(self, connection: Connection, first: int, count: int) -> None:
        """Insert `count` messages with their counts, beginning with the message number `first`."""
        messages, links, first_clicks, hits, events, deliveries, attempts = [], [], [], [], [], [], []
        chance, cohort, link_set = self._chance, self._cohort, self._link_set
        delta = CountDelta()
        for number in range(first, first + count):
            at = self._start_ms + int(number * self._interval_ms)
            message = first_id_at(at) + number % 1000 * 4
            link, code, to = message + 1, self._mint(), f"+1408{number % 10_000_000:07d}"
            sent_at, delivered_at = at + 800, at + 2300
            clicked_at = at + chance.randrange(10_000, MAX_CLICK_MS) if chance.random() < self._clicked else None
            hit = None if clicked_at is None else first_id_at(clicked_at) + number % 1_000_000
            name, request = new_message_id(), new_message_id()
            messages.append(
                (message, 1, cohort, name, request, "", encode(chance.getrandbits(128), 22) + "0123456789", to, "18775550100",
                 "EjihJOXWJE24O", "Gladiator", int(State.DELIVERED), at, sent_at, delivered_at, "GSM-7", 1, "0.0095", link_set)
            )  # fmt: skip
            url = f"{DESTINATION}?utm_source=sms&customer={number:08d}"
            links.append((link, code, message, 1, cohort, 0, 0, 0, url, at + RETENTION_DAYS * DAY_MS, link_set))
            for metric, counted_at in (
                ("messages", at), ("segments", at), ("links", at), ("sent", sent_at), ("delivered", delivered_at)
            ):  # fmt: skip
                delta.add(cohort, counted_at, metric, message=message, link_set=link_set)
            if hit is None or clicked_at is None:
                continue
            seconds = time_to_click(clicked_at, sent_at, at, State.DELIVERED)
            for metric in (CLICKS, CLICKED_LINKS, CLICKED_MESSAGES, seconds):
                delta.add(cohort, clicked_at, metric, message=message, link_set=link_set)
            first_clicks.append((message, clicked_at, hit, 1))
            flags = int(HitFlag.FIRST_FOR_LINK | HitFlag.FIRST_FOR_MESSAGE)
            hits.append((hit, link, clicked_at, int(Verdict.HUMAN), "browser", flags, "203.0.113.0", rig.PHONE))
            facts = _facts(name, request, to, code, url)
            topics = int(Topic.STATE | Topic.CLICK)
            events.append((hit, 1, topics, clicked_at, message, link, hit, facts, True))
            delivery, delivered = hit + 1, int(DeliveryStatus.DELIVERED)
            deliveries.append(
                (delivery, hit, int(Topic.STATE), 1, 1, "t1", delivered, 1, clicked_at, clicked_at, clicked_at + 40, 200)
            )
            attempts.append((delivery + 1, delivery, 1, clicked_at, 40, 200, "OK"))
        for insert, rows in (
            (insert_messages, messages),
            (insert_links, links),
            (insert_first_clicks, first_clicks),
            (insert_hits, hits),
            (insert_events, events),
            (insert_deliveries, deliveries),
            (insert_attempts, attempts),
            (count_deltas.insert, count_deltas.rows(self._ids(), delta)),
        ):
            insert(connection, rows)
        counts.fold_batch(connection, max_origins=ALL_ORIGINS)


def _facts(name: str, request: str, to: str, code: str, url: str) -> str:
    """Return the JSON data of an event that the fan-out stores for the bodies of deliveries."""
    facts = {
        "timestamp": "2026-11-20T12:00:13.000Z", "application_id": 1, "company_id": None, "message_id": name,
        "message_request_id": request, "external_message_request_id": "", "to_address": to, "phone_sha256": "0" * 64,
        "from_address": "18775550100", "sender_id_id": "EjihJOXWJE24O", "sender_id_alias": "Gladiator", "new_state": "CLICKTHRU",
        "reason_code": None, "reason_description": None, "report_status": None, "telecom_message_id": None, "fragments_count": 1,
        "mt_price": "0.0095", "has_attachment": False, "campaign": "spring", "source": "api", "country": "US", "metadata": None,
        "process_key": "D1021E43D3A0B6321A7516693399CBFD", "sent_at": None, "delivered_at": "2026-11-20T12:00:08.000Z",
        "clicked_at": "2026-11-20T12:00:13.000Z", "seconds_since_sent": 12, "seconds_since_delivered": 5, "code": code,
        "short_url": f"https://go.brand.example/{code}", "url": url, "label": None, "click_id": "08evQPmBgBc2qZqZEnt",
        "verdict": "human", "verdict_reason": "browser", "user_agent": rig.PHONE, "first_for_link": True,
        "first_for_message": True, "click_number": 1, "previous_state": "DELIVERED",
    }  # fmt: skip
    return orjson.dumps(facts).decode()


async def fill_messages(database: Database, links: int, *, days: int, clicked: float, now: datetime) -> list[str]:
    """Insert `links` messages, created at even intervals during `days` that end half a day before `now`. `clicked` is the share of
    clicked messages. Return the codes of the links, oldest first."""

    def ids_of_groups(connection: Connection) -> tuple[int, int]:
        """Return the id of the cohort and the id of the link set of all messages."""
        cohort = (1, CAMPAIGN, "api", "US", 0)
        link_set = link_set_key(1, CAMPAIGN, [(DESTINATION, None)])
        return Cohorts().get_ids(connection, {cohort})[cohort], LinkSets().get_ids(connection, {link_set})[link_set]

    start_ms = to_ms(now - timedelta(days=days, hours=12))
    rows = Rows(start_ms, days * DAY_MS / links, clicked, *await database.write(ids_of_groups))
    for first in range(0, links, BATCH_MESSAGES):
        await database.write(rows.write, first, min(BATCH_MESSAGES, links - first))
    await DeviceCounter(database, IdGenerator(0), lambda: now).catch_up()
    while (await database.write(counts.fold_batch, DEVICE_DELTAS_PER_FOLD, ALL_ORIGINS)).rows:
        pass
    return rows.codes
