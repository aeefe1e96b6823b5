"""These tests create and change trackers and check their limits and the encryption of their secrets, on both databases."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from shortener.accounts.administration import create_application
from shortener.accounts.audit import Actor, AuditWriter
from shortener.container import Service
from shortener.delivery import tracker_queries
from shortener.delivery.conversion_url import rotate_callback_secret, write_conversion_url
from shortener.delivery.guard import Guard
from shortener.delivery.outcomes import GONE
from shortener.delivery.pace import EndpointPace
from shortener.delivery.tracker_presenter import effective_limits
from shortener.delivery.trackers import NewTracker, Trackers
from shortener.errors import ApiError, ErrorCode
from shortener.ids import IdGenerator
from shortener.model import Topic
from shortener.signatures import parse_secret
from shortener.storage import schema
from shortener.storage.types import to_ms
from tests.conftest import NOON, Clock, MakeService
from tests.databases import someone_at, until_it_waits
from tests.delivery.conftest import MakeTracker, Story, changes
from tests.factory import AUDIT, audited_rows, rows
from tests.one_service import on_one_service

KEY = AuditWriter(Actor(name="key 5"), IdGenerator(1))
URL = "https://tracker.example/hook?phone={phone}"


def new_tracker(**more: Any) -> NewTracker:
    return NewTracker(**({"url": URL, "events": ["state"]} | more))


async def rejection(service: Service, **more: Any) -> tuple[ErrorCode, list[str]]:
    with pytest.raises(ApiError) as caught:
        await service.trackers.create(AUDIT, 1, new_tracker(**more))
    assert await service.trackers.all() == []
    return caught.value.code, [detail.field for detail in caught.value.details]


async def test_a_created_tracker_is_returned_with_its_values(service: Service) -> None:
    saved = await service.trackers.create(
        AUDIT,
        1,
        new_tracker(
            name="mine",
            events=["click", "state"],
            method="GET",
            format="json",
            fields=["phone", "status"],
            headers={"Authorization": "Bearer x"},
            secret="my own secret",
            success={"statuses": "200", "body_contains": "ok"},
            max_attempts=3,
            timeout=1.5,
            concurrency=2,
            schedule=[1, 2.5],
        ),
    )
    assert saved.secret is None, "a secret from the caller is not returned"
    stored = await service.trackers.get(saved.tracker.id, 1)
    assert stored == saved.tracker
    assert (stored.name, stored.url, stored.events) == ("mine", URL, ["state", "click"])
    assert (stored.method, stored.format, stored.fields) == ("GET", "json", ["phone", "status"])
    assert stored.success == {"statuses": "200", "body_contains": "ok"}
    assert (stored.max_attempts, stored.timeout, stored.concurrency, stored.schedule) == (3, 1.5, 2, [1.0, 2.5])
    assert (stored.headers_set, stored.secret_set, stored.enabled, stored.created_at) == (True, True, True, NOON)


async def test_a_tracker_that_sets_no_limits_has_the_limits_of_the_service_settings(make_service: MakeService) -> None:
    service = await make_service(delivery_attempts=7, delivery_timeout=2.5, delivery_slots_per_tracker=3, delivery_schedule="9,10")
    saved = await service.trackers.create(AUDIT, 1, new_tracker())
    assert saved.tracker.name == "tracker.example"
    assert effective_limits(service.settings, saved.tracker) == {
        "max_attempts": 7,
        "timeout": 2.5,
        "concurrency": 3,
        "max_per_second": None,
        "schedule": [9.0, 10.0],
    }
    _, target = await service.trackers.load(saved.tracker.id)
    assert (target.max_attempts, target.timeout, target.concurrency, target.schedule) == (7, 2.5, 3, (9.0, 10.0))
    assert (target.success.statuses, target.fields, target.headers) == ("2xx", None, {})


async def test_the_database_contains_secrets_and_headers_of_trackers_encrypted(service: Service) -> None:
    saved = await service.trackers.create(AUDIT, 1, new_tracker(headers={"Authorization": "Bearer hunter2"}))
    assert saved.secret is not None
    assert saved.secret.startswith("whsec_")
    (row,) = await rows(service.database, schema.trackers)
    columns = " ".join(str(value) for value in row)
    assert "hunter2" not in columns
    assert saved.secret not in columns
    _, target = await service.trackers.load(saved.tracker.id)
    assert target.headers == {"Authorization": "Bearer hunter2"}
    assert target.secrets == ((parse_secret(saved.secret), None),)


async def test_a_tracker_created_with_signed_false_has_no_secret(service: Service) -> None:
    saved = await service.trackers.create(AUDIT, 1, new_tracker(signed=False))
    assert (saved.secret, saved.tracker.secret_set) == (None, False)
    _, target = await service.trackers.load(saved.tracker.id)
    assert target.secrets == ()


async def test_a_tracker_with_an_invalid_or_forbidden_url_is_rejected(service: Service) -> None:
    for url, code in (
        ("https://t.example/?p={phon}", ErrorCode.UNKNOWN_PLACEHOLDER),
        ("https://t.example/?p={{phone}}", ErrorCode.UNKNOWN_PLACEHOLDER),
        ("https://t.example/?p=[phone]", ErrorCode.UNKNOWN_PLACEHOLDER),
        ("https://{phone}.example/", ErrorCode.INVALID_TRACKER_URL),
        ("ftp://t.example/", ErrorCode.INVALID_TRACKER_URL),
        ("https://user:pw@t.example/", ErrorCode.INVALID_TRACKER_URL),
        ("http://127.1/", ErrorCode.FORBIDDEN_TARGET),
        ("http://169.254.169.254/latest/meta-data", ErrorCode.FORBIDDEN_TARGET),
        ("http://[::ffff:169.254.169.254]/", ErrorCode.FORBIDDEN_TARGET),
    ):
        assert await rejection(service, url=url) == (code, ["url"]), url


async def test_a_tracker_with_a_private_address_is_rejected_when_it_is_saved(make_service: MakeService) -> None:
    service = await make_service(allow_private_targets=False)
    private = ("http://127.0.0.1:9/", "http://localhost/", "http://10.1.2.3/", "http://[::1]/")
    for url in private:
        assert await rejection(service, url=url) == (ErrorCode.FORBIDDEN_TARGET, ["url"]), url
    tracker = (await service.trackers.create(AUDIT, 1, new_tracker())).tracker.id
    for url in private:
        with pytest.raises(ApiError) as caught:
            await service.trackers.update(AUDIT, tracker, changes(url=url))
        assert caught.value.code is ErrorCode.FORBIDDEN_TARGET
    assert (await service.trackers.get(tracker)).url == URL


async def test_a_tracker_whose_host_has_a_forbidden_address_is_rejected(service: Service, clock: Clock) -> None:
    def lookup(host: str, port: int) -> Sequence[str]:
        return ["192.0.2.1" if host == "mixed.example" else "198.18.0.1", "10.0.0.1"]

    guarded = Trackers(service.database, service.secret, Guard(lookup=lookup), service.settings, clock)
    with pytest.raises(ApiError) as caught:
        await guarded.create(AUDIT, 1, new_tracker(url="https://mixed.example/"))
    assert caught.value.code is ErrorCode.FORBIDDEN_TARGET
    assert "10.0.0.1" not in str(caught.value.details), "errors do not reveal addresses of the network"


async def test_a_tracker_with_an_http_url_is_rejected_if_the_settings_forbid_http(make_service: MakeService) -> None:
    service = await make_service(allow_http_targets=False)
    assert await rejection(service, url="http://t.example/") == (ErrorCode.FORBIDDEN_TARGET, ["url"])
    await service.trackers.create(AUDIT, 1, new_tracker())


async def test_the_number_of_trackers_of_an_application_is_limited(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_queries, "MAX_TRACKERS", 2)
    for _ in range(2):
        await service.trackers.create(AUDIT, 1, new_tracker())
    with pytest.raises(ApiError) as caught:
        await service.trackers.create(AUDIT, 1, new_tracker())
    assert caught.value.code is ErrorCode.CONFLICT


async def test_an_application_cannot_access_the_trackers_of_another_application(
    service: Service, make_tracker: MakeTracker
) -> None:
    other = (await service.database.write(create_application, "other", NOON)).application_id
    tracker = await make_tracker(URL)
    assert await service.trackers.all(other) == []
    for attempt in (
        service.trackers.get(tracker, other),
        service.trackers.update(AUDIT, tracker, changes(name="x"), other),
        service.trackers.delete(AUDIT, tracker, other),
        service.trackers.load(tracker, other),
        service.trackers.get(1 << 60),
        service.trackers.create(AUDIT, 77, new_tracker()),
    ):
        with pytest.raises(ApiError) as caught:
            await attempt
        assert caught.value.code is ErrorCode.NOT_FOUND


async def test_an_update_of_a_tracker_leaves_other_values_unchanged(service: Service, clock: Clock) -> None:
    saved = await service.trackers.create(AUDIT, 1, new_tracker(headers={"X-A": "1"}, fields=["phone"], timeout=3, format="json"))
    clock.forward(seconds=1)
    changed = (await service.trackers.update(AUDIT, saved.tracker.id, changes(name="new", timeout=None))).tracker
    assert (changed.name, changed.timeout, changed.updated_at) == ("new", None, clock())
    before = {name: getattr(saved.tracker, name) for name in ("url", "topics", "format", "fields", "headers_set", "secret_set")}
    assert {name: getattr(changed, name) for name in before} == before
    changed = (await service.trackers.update(AUDIT, saved.tracker.id, changes(headers=None, fields=None, events=["click"]))).tracker
    assert (changed.headers_set, changed.fields, changed.topics) == (False, None, Topic.CLICK)


async def test_the_rotation_of_a_tracker_secret_keeps_the_old_secret_for_the_overlap(service: Service, clock: Clock) -> None:
    saved = await service.trackers.create(AUDIT, 1, new_tracker(secret="the first one"))
    tracker = saved.tracker.id
    rotated = await service.trackers.update(AUDIT, tracker, changes(rotate_secret=True, secret_overlap=60))
    assert rotated.secret is not None
    assert rotated.tracker.previous_secret_until == NOON + timedelta(seconds=60)
    _, target = await service.trackers.load(tracker)
    assert [until for _, until in target.secrets] == [None, NOON + timedelta(seconds=60)]
    assert target.secrets[1][0] == parse_secret("the first one")
    at_once = await service.trackers.update(AUDIT, tracker, changes(secret="the third one", secret_overlap=0))
    assert (at_once.secret, at_once.tracker.previous_secret_until) == (None, None)
    with pytest.raises(ApiError):
        await service.trackers.update(AUDIT, tracker, changes(secret="the fourth", rotate_secret=True))
    unsigned = await service.trackers.update(AUDIT, tracker, changes(secret=None))
    assert (unsigned.tracker.secret_set, unsigned.tracker.previous_secret_until) == (False, None)


async def test_the_repeat_of_a_change_of_a_tracker_secret_does_not_end_the_overlap_of_the_old_one(service: Service) -> None:
    tracker = (await service.trackers.create(AUDIT, 1, new_tracker(secret="the first one"))).tracker.id
    # The second request is a repeat, for example by a client that got no response.
    for _ in range(2):
        await service.trackers.update(AUDIT, tracker, changes(secret="the second one", secret_overlap=60, name="new"))
        _, target = await service.trackers.load(tracker)
        keys = [(parse_secret("the second one"), None), (parse_secret("the first one"), NOON + timedelta(seconds=60))]
        assert list(target.secrets) == keys
    await service.trackers.update(AUDIT, tracker, changes(secret="the second one", secret_overlap=0))
    _, target = await service.trackers.load(tracker)
    assert list(target.secrets) == keys[:1], "an overlap of 0 ends it"


async def test_disabling_a_tracker_stores_a_reason_and_enabling_the_tracker_removes_the_reason(
    service: Service, make_tracker: MakeTracker
) -> None:
    tracker = await make_tracker(URL)
    disabled = (await service.trackers.update(AUDIT, tracker, changes(enabled=False))).tracker
    assert (disabled.enabled, disabled.disabled_reason) == (False, "switched off")
    enabled = (await service.trackers.update(AUDIT, tracker, changes(enabled=True))).tracker
    assert (enabled.enabled, enabled.disabled_reason) == (True, None)


@pytest.mark.parametrize(
    ("was_enabled", "change", "is_closed"),
    [
        (True, {"enabled": True, "name": "renamed", "url": URL}, False),
        (True, {"max_per_second": 5.0}, False),
        (True, {"enabled": True, "url": "https://tracker.example/other"}, True),
        (False, {"enabled": True}, True),
        (False, {"name": "renamed"}, False),
    ],
)
async def test_only_a_new_url_or_enabling_a_disabled_tracker_closes_its_circuit_breaker_and_forgets_its_rate(
    service: Service, make_tracker: MakeTracker, was_enabled: bool, change: dict[str, Any], is_closed: bool
) -> None:
    tracker = await make_tracker(URL)
    failing = {
        "enabled": was_enabled,
        "failures_in_row": 10,
        "opened_at": NOON,
        "open_until": NOON + timedelta(minutes=5),
        "rate": 2.5,
        "rate_ceiling": 3.0,
        "rate_lowered_at": NOON,
        "paced_until": NOON,
    }
    await service.database.write(lambda connection: connection.execute(update(schema.trackers).values(failing)).rowcount)
    saved = (await service.trackers.update(AUDIT, tracker, changes(**change))).tracker
    assert saved.health.breaker(to_ms(NOON)) == ("recovering" if is_closed else "open")
    assert (saved.health.failures_in_row, saved.pace.rate) == ((0, None) if is_closed else (10, 2.5))


async def mark_gone(service: Service) -> None:
    """Disable all trackers as a 410 response does."""
    gone = update(schema.trackers).values(enabled=False, disabled_reason=GONE)
    await service.database.write(lambda connection: connection.execute(gone).rowcount)


async def test_a_tracker_that_a_410_response_disabled_gets_no_new_events_after_a_person_disabled_it(
    service: Service, make_tracker: MakeTracker, story: Story
) -> None:
    tracker = await make_tracker(URL, "state")
    await mark_gone(service)
    renamed = (await service.trackers.update(AUDIT, tracker, changes(name="renamed"))).tracker
    assert renamed.disabled_reason == GONE
    disabled = (await service.trackers.update(AUDIT, tracker, changes(enabled=False))).tracker
    assert (disabled.enabled, disabled.disabled_reason) == (False, "switched off")
    await story.first_click()
    await service.fanout.flush()
    assert await rows(service.database, schema.deliveries) == []


async def test_a_new_conversion_url_enables_its_tracker_after_a_410_response_of_the_old_url(service: Service) -> None:
    async def put(url: str) -> tuple[bool, str | None]:
        await service.database.write(write_conversion_url, AUDIT, 1, url, None, NOON)
        found = await service.trackers.conversion_url(1)
        assert found is not None
        return found.enabled, found.disabled_reason

    assert await put(URL) == (True, None)
    await mark_gone(service)
    assert await put(URL) == (False, GONE)
    assert await put("https://other.example/") == (True, None)
    found = await service.trackers.conversion_url(1)
    assert found is not None
    await service.trackers.update(AUDIT, found.id, changes(enabled=False))
    assert await put(URL) == (False, "switched off")


@pytest.mark.parametrize("change", [write_conversion_url, rotate_callback_secret])
async def test_a_change_of_conversion_url_during_another_change_of_its_tracker_gets_the_next_revision(
    service: Service, change: Any
) -> None:
    """A process that has cached the target of the first change must notice the second change."""
    if service.database.dialect == "sqlite":
        pytest.skip("SQLite runs one transaction after the other")
    await service.database.write(write_conversion_url, AUDIT, 1, URL, None, NOON)
    [tracker] = await rows(service.database, schema.trackers)
    arguments = ("https://new.example/", None, NOON) if change is write_conversion_url else ("encrypted", NOON, timedelta(hours=1))
    async with someone_at(service, "UPDATE trackers SET revision = revision + 1 WHERE id = $1", tracker.id) as other:
        task = asyncio.create_task(service.database.write(change, AUDIT, 1, *arguments))
        await until_it_waits(other, task)
    await task
    [changed] = await rows(service.database, schema.trackers)
    assert changed.revision == tracker.revision + 2


async def test_every_update_of_a_tracker_increments_its_revision(service: Service, make_tracker: MakeTracker) -> None:
    tracker = await make_tracker(URL)
    for _ in range(3):
        await service.trackers.update(AUDIT, tracker, changes(name="same"))
    revision = select(schema.trackers.c.revision)
    assert await service.database.read(lambda connection: connection.execute(revision).scalar_one()) == 4


async def test_the_application_setting_conversion_url_is_stored_as_a_tracker_for_conversions(
    service: Service, clock: Clock
) -> None:
    async def put(url: str | None, fields: list[str] | None = None) -> None:
        await service.database.write(write_conversion_url, AUDIT, 1, url, fields, clock())

    await put("https://c.example/?v={value}", ["phone", "value"])
    tracker = await service.trackers.conversion_url(1)
    assert tracker is not None
    assert (tracker.role, tracker.format, tracker.method, tracker.topics) == ("conversion_url", "json", "POST", Topic.CONVERSION)
    assert (tracker.fields, tracker.secret_set, tracker.success["statuses"]) == (["phone", "value"], True, "2xx")
    await put("https://d.example/")
    changed = await service.trackers.conversion_url(1)
    assert changed is not None
    assert (changed.id, changed.url, changed.fields) == (tracker.id, "https://d.example/", None)
    with pytest.raises(ApiError):
        await service.trackers.update(AUDIT, tracker.id, changes(events=["click"]))
    signed = await service.trackers.update(AUDIT, tracker.id, changes(rotate_secret=True))
    assert signed.secret is not None
    await put(None)
    assert await service.trackers.conversion_url(1) is None
    await put(None)


async def callback_secrets(service: Service, application_id: int) -> Any:
    statement = select(schema.applications).where(schema.applications.c.id == application_id)
    return await service.database.read(lambda connection: connection.execute(statement).one())


async def test_a_new_application_has_a_callback_secret_that_is_stored_encrypted(service: Service) -> None:
    created = await service.database.write(lambda c: create_application(c, "new", NOON, secret=service.secret))
    row = await callback_secrets(service, created.application_id)
    assert created.callback_secret is not None
    assert created.callback_secret not in row.callback_secret
    assert service.secret.decrypt(row.callback_secret) == created.callback_secret
    assert service.first_credentials is not None
    assert service.first_credentials.callback_secret


async def test_requests_to_conversion_url_are_signed_with_the_callback_secret_also_after_its_rotation(
    service: Service, clock: Clock
) -> None:
    first = service.first_credentials.callback_secret if service.first_credentials else None
    assert first is not None
    await service.database.write(write_conversion_url, AUDIT, 1, URL, None, NOON)
    tracker = await service.trackers.conversion_url(1)
    assert tracker is not None

    async def secrets() -> Any:
        return (await service.trackers.load(tracker.id))[1].secrets

    assert await secrets() == ((parse_secret(first), None),)
    second, until = await service.trackers.rotate_callback_secret(AUDIT, 1, timedelta(hours=1))
    assert until == clock() + timedelta(hours=1)
    assert await secrets() == ((parse_secret(second), None), (parse_secret(first), until))
    third, none = await service.trackers.rotate_callback_secret(AUDIT, 1, timedelta())
    assert (none, await secrets()) == (None, ((parse_secret(third), None),))
    own = await service.trackers.update(AUDIT, tracker.id, changes(secret="whsec_" + "b2xk" * 8, secret_overlap=0))
    await service.trackers.rotate_callback_secret(AUDIT, 1, timedelta(hours=1))
    assert own.tracker.secret_set
    assert await secrets() == ((parse_secret("whsec_" + "b2xk" * 8), None),)


async def test_rotation_creates_a_callback_secret_if_the_application_has_no_callback_secret(service: Service) -> None:
    other = (await service.database.write(create_application, "other", NOON)).application_id
    await service.database.write(write_conversion_url, AUDIT, other, URL, None, NOON)
    assert await service.trackers.callback_secret_state(other) == (False, None)
    secret, until = await service.trackers.rotate_callback_secret(AUDIT, other, timedelta(hours=1))
    tracker = await service.trackers.conversion_url(other)
    assert tracker is not None
    _, target = await service.trackers.load(tracker.id)
    assert (until, target.secrets) == (None, ((parse_secret(secret), None),))
    with pytest.raises(ApiError):
        await service.trackers.rotate_callback_secret(AUDIT, 99, timedelta())


@on_one_service
@pytest.mark.parametrize(
    ("url", "is_kept"),
    [
        ("https://tracker.example/other?p={phone}", True),
        ("https://tracker.example:443/", True),
        ("https://other.example/", False),
        ("http://tracker.example/", False),
        ("https://tracker.example:8443/", False),
    ],
)
async def test_static_headers_are_removed_if_scheme_host_or_port_of_the_tracker_url_change(
    service: Service, url: str, is_kept: bool
) -> None:
    saved = await service.trackers.create(
        AUDIT, 1, new_tracker(url="https://tracker.example/in", headers={"Authorization": "Bearer x"})
    )
    changed = (await service.trackers.update(AUDIT, saved.tracker.id, changes(url=url))).tracker
    assert changed.headers_set is is_kept
    _, target = await service.trackers.load(saved.tracker.id)
    assert target.headers == ({"Authorization": "Bearer x"} if is_kept else {})


async def test_static_headers_that_are_set_together_with_a_new_tracker_url_are_kept(service: Service) -> None:
    saved = await service.trackers.create(
        AUDIT, 1, new_tracker(url="https://tracker.example/in", headers={"Authorization": "Bearer x"})
    )
    new = changes(url="https://other.example/", headers={"Authorization": "Bearer y"})
    assert (await service.trackers.update(AUDIT, saved.tracker.id, new)).tracker.headers_set


async def test_static_headers_of_the_conversion_url_are_removed_if_its_host_changes(service: Service) -> None:
    def save(connection: Connection, url: str) -> None:
        write_conversion_url(connection, AUDIT, 1, url, None, NOON)

    await service.database.write(save, "https://tracker.example/in")
    saved = await service.trackers.conversion_url(1)
    assert saved is not None
    await service.trackers.update(AUDIT, saved.id, changes(headers={"Authorization": "Bearer x"}))
    for url, is_kept in (("https://tracker.example/other", True), ("https://other.example/", False)):
        await service.database.write(save, url)
        saved = await service.trackers.conversion_url(1)
        assert saved is not None
        assert saved.headers_set is is_kept


async def test_a_new_tracker_url_removes_the_learned_rate(service: Service) -> None:
    saved = await service.trackers.create(AUDIT, 1, new_tracker(max_per_second=7.5))
    slow = update(schema.trackers).values(rate=0.1, rate_ceiling=1.0, rate_lowered_at=NOON, paced_until=NOON)
    await service.database.write(lambda connection: connection.execute(slow))
    assert (await service.trackers.get(saved.tracker.id)).pace.rate == 0.1
    changed = await service.trackers.update(AUDIT, saved.tracker.id, changes(url="https://tracker.example/2"))
    assert changed.tracker.pace == EndpointPace(max_per_second=7.5)


async def test_the_audit_log_says_which_values_of_a_tracker_changed_without_its_secrets(service: Service) -> None:
    url = "https://user.example/secret-path?token=S3CRET"
    saved = await service.trackers.create(
        KEY, 1, new_tracker(url=url, headers={"Authorization": "S3CRET"}, conversion_actions=["sale"])
    )
    for change in (
        changes(name="shop", timeout=3),
        changes(name="shop"),
        changes(url="https://user.example/S3CRET"),
        changes(headers={"Authorization": "S3CRET 2"}),
        changes(rotate_secret=True),
        changes(secret=None, url="https://other.example/S3CRET"),
    ):
        await service.trackers.update(KEY, saved.tracker.id, change)
    created, *changed = await audited_rows(service.database)
    assert (created.action, created.object, created.after["host"]) == ("tracker_created", "tracker 1 user.example", "user.example")
    assert created.after["conversion_actions"] == ["sale"]
    assert "conversion_dispositions" not in created.after
    assert [(row.action, row.before, row.after) for row in changed] == [
        ("tracker_changed", {"name": "user.example", "timeout": None}, {"name": "shop", "timeout": 3}),
        ("tracker_changed", {"path and query of the URL": "set"}, {"path and query of the URL": "replaced"}),
        ("tracker_changed", {"headers": "set"}, {"headers": "replaced"}),
        ("tracker_secret_replaced", {"secret": "set"}, {"secret": "replaced"}),
        (
            "tracker_changed",
            {"host": "user.example", "headers": "set", "secret": "set"},
            {"host": "other.example", "headers": "removed", "secret": "removed"},
        ),
    ]
    assert "S3CRET" not in str([created, *changed])
