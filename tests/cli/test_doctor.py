"""Tests of `shortener doctor`. Each problem has a remedy. A problem that prevents the start of a server is an error."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, insert

from shortener.cli import doctor
from shortener.cli.base_url import unreachable_links
from shortener.clicks.networks import NetworkFileError
from shortener.container import open_service
from shortener.errors import StoreUnavailable
from shortener.model import utcnow
from shortener.secret import SecretError
from shortener.settings import Settings
from shortener.settings_sources import load
from shortener.storage import schema
from shortener.storage.installation import BaseUrlMissing
from shortener.storage.integrity import DatabaseLost
from shortener.storage.migrate import SchemaMismatch
from tests.acceptance.process import Server
from tests.cli.shell import InProcessShell, Shell, create_installation
from tests.servers import Proxy, RedisProcess, free_port, tls_context

SECRET = "0123456789abcdefghijklmnopqrstuv"


@pytest.fixture
def shell(tmp_path: Path, sqlite_template: Path) -> InProcessShell:
    """A shell on an installation with one application."""
    create_installation(tmp_path / "data", sqlite_template)
    shell = InProcessShell(tmp_path / "data", SHORTENER_ALLOW_PRIVATE_TARGETS="false")
    shell("applications", "create", "Brand")
    (tmp_path / "data" / "shortener.db").chmod(0o600)
    return shell


def check(shell: InProcessShell | Shell, code: int = 0) -> dict[str, dict[str, str]]:
    """Run the command `shortener doctor`. Return the worst finding of each check, by the name of the check."""
    found: dict[str, dict[str, str]] = {}
    for one in shell.json("doctor", code=code):
        assert (one["level"] == "ok") is (one["remedy"] == ""), "each line that is not ok has a remedy"
        if one["check"] not in found or one["level"] != "ok":
            found[one["check"]] = one
    return found


def test_the_doctor_command_reports_only_development_warnings_for_a_good_installation(shell: InProcessShell) -> None:
    found = check(shell)
    assert {name for name, one in found.items() if one["level"] != "ok"} <= {"base_url", "sqlite", "disk"}
    assert str(shell.folder) in found["installation"]["text"]
    assert "1 application in" in found["installation"]["text"]
    assert "0 errors" in shell("doctor").stdout


def test_the_doctor_command_says_that_recipients_read_the_name_of_an_application(shell: InProcessShell) -> None:
    assert "name" not in check(shell)
    query(shell, "UPDATE applications SET name = 'default'")
    assert "applications update APPLICATION --name" in check(shell)["name"]["text"]


def query(shell: InProcessShell, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(shell.folder / "shortener.db")) as connection, connection:
        connection.execute(statement)


FAULTS: dict[str, tuple[dict[str, str], Callable[[InProcessShell], Any], str]] = {
    "nothing": ({}, lambda shell: None, ""),
    "another secret": ({"SECRET": SECRET}, lambda shell: None, "secret"),
    "no secret": ({}, lambda shell: (shell.folder / "secret").unlink(), "secret"),
    "a weak secret": ({}, lambda shell: (shell.folder / "secret").write_text("changeme"), "secret"),
    "no database": ({}, lambda shell: (shell.folder / "shortener.db").unlink(), "database"),
    "an old schema": ({}, lambda shell: query(shell, "UPDATE alembic_version SET version_num = '0001'"), "schema"),
    "a newer schema": ({}, lambda shell: query(shell, "UPDATE alembic_version SET version_num = '9999'"), "schema"),
    "an incomplete copy": ({}, lambda shell: query(shell, "INSERT INTO installation VALUES ('copy', 'x')"), "copy"),
    "a database server that is down": ({"DATABASE_URL": "postgresql://127.0.0.1:1/x"}, lambda shell: None, "database"),
    "a missing network list": ({"NETWORK_FILES": "/no/such/file.txt"}, lambda shell: None, "network_files"),
    "links to this machine": ({"HOST": "0.0.0.0"}, lambda shell: None, "links"),
    "a base url of the installation that is not set": (
        {},
        lambda shell: query(shell, "INSERT INTO installation VALUES ('base_url', 'https://go.example')"),
        "links",
    ),
    "a redis that is down": ({"REDIS_URL": "redis://127.0.0.1:1"}, lambda shell: None, ""),
    "a folder that others can read": ({}, lambda shell: shell.folder.chmod(0o755), ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_doctor_command_reports_an_error_if_and_only_if_a_server_does_not_start(shell: InProcessShell, name: str) -> None:
    settings, damage, failing = FAULTS[name]
    damage(shell)
    variables = {f"SHORTENER_{key}": value for key, value in settings.items()}
    other = InProcessShell(shell.folder, **{"SHORTENER_ALLOW_PRIVATE_TARGETS": "false"} | variables)
    found = check(other, code=1 if failing else 0)
    assert {check for check, one in found.items() if one["level"] == "error"} == ({failing} if failing else set())

    async def start(values: Settings) -> None:
        service = await open_service(values)
        await service.close(grace=1)

    values = load({"SHORTENER_DATA_DIR": str(shell.folder)} | variables)
    assert bool(unreachable_links(values)) is (name == "links to this machine")
    starts = True
    try:
        asyncio.run(start(values))
    except (StoreUnavailable, SchemaMismatch, SecretError, DatabaseLost, NetworkFileError, BaseUrlMissing):
        starts = False
    assert (starts and not unreachable_links(values)) is (failing == "")


def test_the_doctor_command_finds_the_process_of_a_running_server_and_reports_it_as_ready(server: Server) -> None:
    found = check(Shell(server.folder / "data"))
    assert "1 process " in found["processes"]["text"]
    assert {one["level"] for one in found.values()} <= {"ok", "warning"}
    with server.client() as client:
        assert client.get("/readyz").status_code == 200


def test_the_doctor_command_checks_the_permissions_of_the_data_folder_and_its_files(shell: InProcessShell) -> None:
    (shell.folder / "shortener.db").chmod(0o640)
    found = check(shell)["permissions"]
    assert (found["level"], found["remedy"]) == ("warning", f"run: chmod go= {shell.folder / 'shortener.db'}")


def test_the_doctor_command_reports_backlogs_disabled_trackers_dead_deliveries_and_database_growth(shell: InProcessShell) -> None:
    now = utcnow()
    engine = create_engine(f"sqlite:///{shell.folder}/shortener.db")
    tracker = {"application_id": 1, "url": "https://t.example/", "topics": 1, "method": "POST", "format": "json", "success": {}}
    with engine.begin() as connection:
        times = {"created_at": now, "updated_at": now}
        connection.execute(
            insert(schema.trackers).values(id=7, name="gone", enabled=False, disabled_reason="410", **tracker, **times)
        )
        connection.execute(insert(schema.trackers).values(id=8, name="failing", enabled=True, **tracker, **times))
        delivery = {"topic": 1, "application_id": 1, "lane": "t1", "attempt": 1, "created_at": now}
        connection.execute(insert(schema.deliveries).values(id=1, event_id=1, status=2, next_at=now, finished_at=now, **delivery))
        dead = {"status": 2, "next_at": now, "finished_at": now, **delivery}
        for number, tracker_id in enumerate((7, 8, 8, 9), 10):
            connection.execute(insert(schema.deliveries).values(id=number, event_id=number, tracker_id=tracker_id, **dead))
        connection.execute(
            insert(schema.deliveries).values(id=2, event_id=2, status=0, next_at=now - timedelta(hours=1), **delivery)
        )
        failed = {"event_id": 3, "tracker_id": 8, "status": 0, "last_status": 500}
        connection.execute(insert(schema.deliveries).values(id=3, next_at=now + timedelta(hours=1), **failed, **delivery))
    engine.dispose()
    found = check(shell)
    assert found["queues"]["remedy"] == "start `shortener serve`: no process delivers"
    assert "shortener trackers update 7 --enable" in found["trackers"]["remedy"]
    assert found["dead_deliveries"]["text"] == (
        "4 deliveries became dead in the last 24 hours: 2 to tracker 8 (failing), 1 to callback URLs, 1 to tracker 7 (gone)"
    ), "the deliveries of the deleted tracker 9 are not reported"
    assert "1 delivery to tracker 8 (failing) failed at least once" in found["failing_deliveries"]["text"]
    assert "HTTP 500" in found["failing_deliveries"]["text"]
    assert "shortener trackers test 8" in found["failing_deliveries"]["remedy"]


def test_the_doctor_command_says_how_to_enable_a_tracker_that_lost_its_secret(shell: InProcessShell) -> None:
    shell("trackers", "add", "1", "https://t.example/", "--event", "click")
    (shell.folder / "secret").unlink()
    shell("secret", "adopt", "--yes")
    found = check(shell)["trackers"]
    assert "the secret of the installation was lost" in found["text"]
    assert "shortener trackers update 1 --header 'NAME: -' --secret - --enable" in found["remedy"]


def test_the_doctor_command_reports_gateways_that_are_down_and_messages_that_wait_or_are_held(shell: InProcessShell) -> None:
    port = free_port()
    words = ("--kind", "smpp", "--url", f"smpp://127.0.0.1:{port}", "--allow-private", "--set", "system_id=x")
    down = shell.json("gateways", "add", "carrier", *words)["gateway_id"]
    slow = shell.json("gateways", "add", "slow", "--kind", "simulator")["gateway_id"]
    found = check(shell)
    assert found["gateways"]["level"] == "ok"
    reason = f"gateway {down} (carrier) accepts no connection at 127.0.0.1, port {port}: the port refuses connections"
    assert found["gateway_addresses"]["text"] == reason
    assert f"`shortener gateways update {down}`" in found["gateway_addresses"]["remedy"]
    now = utcnow()
    engine = create_engine(f"sqlite:///{shell.folder}/shortener.db")
    with engine.begin() as connection:
        table = schema.gateways
        health = {"open_until": now, "failures_in_row": 12}
        connection.execute(table.update().where(table.c.id == down).values(health))
        send = {"application_id": 1, "next_at": now, "created_at": now - timedelta(minutes=10)}
        for number, gateway, status in ((1, down, 0), (2, slow, 0), (3, slow, 3)):
            connection.execute(insert(schema.sends).values(id=number, gateway_id=gateway, status=status, **send))
    engine.dispose()
    texts = [(one["text"], one["remedy"]) for one in shell.json("doctor") if one["check"] in ("gateways", "held_messages")]
    assert [text.partition(", the oldest")[0] for text, _ in texts] == [
        f"the circuit breaker of gateway {down} (carrier) is open after 12 failures in a row; last success: none. 1 message waits",
        f"1 message waits for gateway {slow} (slow)",
        f"held messages: 1, because gateway {slow} (slow) may have accepted them but did not respond",
    ]
    assert f"`shortener gateways test {down} NUMBER`" in texts[0][1]
    assert "`shortener sends list --status held`" in texts[2][1]
    shell("gateways", "update", str(down), "--disable")
    assert "gateway_addresses" not in check(shell)


def test_the_doctor_command_reports_kubernetes_variables_and_a_missing_proxy_setting(shell: InProcessShell) -> None:
    other = InProcessShell(shell.folder, SHORTENER_PORT="tcp://10.0.0.1:80", SHORTENER_BASE_URL=f"https://localhost:{free_port()}")
    found = check(other)
    assert "enableServiceLinks: false" in found["service_links"]["remedy"]
    assert "TRUSTED_PROXIES" in found["proxies"]["remedy"]
    assert found["private_targets"]["level"] == "warning"
    assert found["certificate"]["level"] == "warning"


def test_the_doctor_command_checks_the_tls_certificate_of_the_setting_base_url(certificate: Path) -> None:
    with Proxy(free_port(), tls=tls_context(certificate)).in_a_thread() as proxy:
        found = {one.check: one for one in doctor.check_base_url(Settings(base_url=f"https://localhost:{proxy.port}"))}
    assert "browsers do not trust the certificate of localhost" in found["certificate"].text
    found = {one.check: one for one in doctor.check_base_url(Settings(base_url="https://no-such-host.invalid"))}
    assert (found["dns"].level, found["dns"].remedy) == ("warning", "create an A or AAAA record for this name")


def test_the_doctor_command_checks_the_names_of_enabled_own_domains(shell: InProcessShell, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def look_up(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        raise OSError("no such name")

    shell("domains", "add", "1", "https://go.brand.example")
    shell("domains", "add", "1", "https://off.brand.example")
    shell("domains", "update", "off.brand.example", "--disable")
    monkeypatch.setattr("shortener.cli.doctor.socket.getaddrinfo", look_up)
    found = check(shell)["dns"]
    assert found["text"] == "go.brand.example has no address here: no such name"
    assert found["remedy"] == "create an A or AAAA record for this name"
    assert "off.brand.example" not in asked


def test_the_doctor_command_reports_a_redis_that_has_no_append_only_file_or_evicts_hits(
    shell: InProcessShell, tmp_path: Path
) -> None:
    (tmp_path / "redis").mkdir()
    redis = RedisProcess(tmp_path / "redis", "--maxmemory-policy", "volatile-ttl")
    redis.start()
    try:
        other = InProcessShell(shell.folder, SHORTENER_REDIS_URL=redis.url)
        assert check(other)["redis"]["level"] == "ok"
        with contextlib.closing(redis.client()) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("appendonly", "no")
        redis_lines = [one["text"] for one in other.json("doctor") if one["check"] == "redis"]
        assert [("append-only" in line, "evicts hits" in line) for line in redis_lines] == [(True, False), (False, True)]
    finally:
        redis.kill()


def test_a_purge_waits_and_the_doctor_says_so_if_the_clock_is_far_ahead_of_the_latest_purge(shell: InProcessShell) -> None:
    assert set(shell.json("purge").values()) == {0}
    assert "purge" not in check(shell)
    long_ago = round((utcnow() - timedelta(days=2000)).timestamp() * 1000)
    query(shell, f"UPDATE installation SET value = '{long_ago} 0 0' WHERE name = 'purge_clock'")
    assert "the clock moved ahead by 2,000 days" in check(shell)["purge"]["text"]
    assert "so nothing expires and the purge waits until" in check(shell)["purge"]["text"]
    assert "The clock moved ahead by 2,000 days" in shell("purge").stderr
    assert "purge" not in check(shell)
