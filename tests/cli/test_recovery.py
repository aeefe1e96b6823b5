"""Tests of `shortener backup`, `restore` and `secret adopt`, and of commands in a folder without an installation."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shortener.clicks.hit_spool import HitSpool
from shortener.container.connections import key_prefix
from shortener.errors import DatabaseInUse
from shortener.redis.client import RedisUnavailable
from shortener.secret import open_secret
from shortener.settings import Settings
from shortener.storage.sqlite import SqliteDatabase
from tests.acceptance.process import PHONE, Server
from tests.cli.shell import InProcessShell, Shell, create_installation
from tests.servers import PATIENCE, RedisProcess


@pytest.fixture
def shell(tmp_path: Path, sqlite_template: Path) -> InProcessShell:
    """A shell on an installation with one application."""
    create_installation(tmp_path / "data", sqlite_template)
    shell = InProcessShell(tmp_path / "data")
    shell("applications", "create", "Brand")
    return shell


@pytest.mark.parametrize(
    "words",
    [
        ("applications", "list"),
        ("applications", "create", "Brand"),
        ("keys", "create", "1"),
        ("verify",),
        ("purge",),
        ("stats",),
        ("messages", "erase", "--phone", "+14085550100", "--yes"),
        ("links", "show", "abc"),
        ("clicks", "list"),
        ("backup", "file"),
        ("secret", "adopt", "--yes"),
        ("doctor",),
    ],
    ids=" ".join,
)
def test_a_command_in_a_folder_without_an_installation_fails_prints_the_folder_and_creates_nothing(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    result = InProcessShell(tmp_path / "data")(*words, code=1)
    assert str(tmp_path / "data") in result.stderr + result.stdout
    assert "there is no installation in" in result.stderr + result.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_command_secret_adopt_creates_no_secret_without_a_confirmation(shell: InProcessShell) -> None:
    secret = shell.folder / "secret"
    assert shell.json("secret", "adopt") == {"adopted": False, "lost": [], "hits_moved": 0}
    secret.unlink()
    assert "add --yes" in shell("secret", "adopt", code=1).stderr
    assert not secret.exists()
    adopted = shell.json("secret", "adopt", "--yes")
    assert [value["value"] for value in adopted["lost"]] == ["callback secret"]
    assert "already belongs" in shell("secret", "adopt").stdout
    assert shell.json("applications", "rotate-callback-secret", "1")["callback_secret"].startswith("whsec_")


def add_waiting_hits(server: RedisProcess, folder: Path, count: int) -> str:
    """Add entries to the stream in Redis that contains the waiting hits of the installation in `folder`. Return the prefix of the
    installation's keys in Redis."""
    prefix = prefix_of(folder)
    with contextlib.closing(server.client()) as client:
        for _ in range(count):
            client.xadd(f"{prefix}spool:hits", {"h": "{}"})
    return prefix


def prefix_of(folder: Path) -> str:
    return key_prefix(open_secret(Settings(data_dir=folder).secret, folder))


def waiting_hits(server: RedisProcess, prefix: str) -> int:
    with contextlib.closing(server.client()) as client:
        return int(client.xlen(f"{prefix}spool:hits"))


def test_the_command_secret_adopt_moves_the_hits_in_redis_after_the_new_secret_is_stored(
    shell: InProcessShell, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = InProcessShell(shell.folder, SHORTENER_REDIS_URL=redis_server.url)
    old = add_waiting_hits(redis_server, shell.folder, 3)
    (shell.folder / "secret").unlink()

    def refuse(*_: object) -> None:
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("shortener.storage.secret_change.adopt", refuse)
        with pytest.raises(RuntimeError, match="the disk is full"):
            shell("secret", "adopt", "--yes")
    assert waiting_hits(redis_server, old) == 3, "the hits stay under the keys that belong to the stored secret"
    assert shell.json("secret", "adopt", "--yes")["hits_moved"] == 3
    assert (waiting_hits(redis_server, old), waiting_hits(redis_server, prefix_of(shell.folder))) == (0, 3)
    assert shell.json("secret", "adopt") == {"adopted": False, "lost": [], "hits_moved": 0}


def test_the_command_secret_adopt_can_be_repeated_if_redis_fails_before_the_hits_are_moved(
    shell: InProcessShell, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_redis = InProcessShell(shell.folder, SHORTENER_REDIS_URL=redis_server.url)
    prefixes = []
    for _ in range(2):
        prefixes.append(add_waiting_hits(redis_server, shell.folder, 2))
        (shell.folder / "secret").unlink()

        async def fail(*_: object) -> int:
            raise RedisUnavailable("connection refused")

        with monkeypatch.context() as patch:
            patch.setattr(HitSpool, "move_from", fail)
            assert "Run `shortener secret adopt` again" in with_redis("secret", "adopt", "--yes", code=1).stderr
    redis_server.kill()
    unreachable = with_redis("secret", "adopt", code=1).stderr
    assert "the hits that wait in Redis are not moved" in unreachable
    redis_server.start()
    assert with_redis.json("secret", "adopt") == {"adopted": False, "lost": [], "hits_moved": 4}
    assert [waiting_hits(redis_server, prefix) for prefix in (*prefixes, prefix_of(shell.folder))] == [0, 0, 4]


def test_the_command_secret_adopt_changes_nothing_while_redis_is_unavailable(
    shell: InProcessShell, redis_server: RedisProcess
) -> None:
    with_redis = InProcessShell(shell.folder, SHORTENER_REDIS_URL=redis_server.url)
    secret = shell.folder / "secret"
    text = secret.read_text()
    secret.unlink()
    redis_server.kill()
    assert "nothing was changed: Redis" in with_redis("secret", "adopt", "--yes", code=1).stderr
    assert not secret.exists()
    secret.write_text(text)
    secret.chmod(0o600)
    assert shell.json("secret", "adopt")["adopted"] is False


def test_the_backup_and_restore_commands_recommend_pg_dump_for_postgresql(shell: InProcessShell, tmp_path: Path) -> None:
    other = InProcessShell(shell.folder, SHORTENER_DATABASE_URL="postgresql://localhost/x")
    for command in ("backup", "restore"):
        assert "use pg_dump" in other(command, str(tmp_path / "file"), code=1).stderr


def test_the_restore_command_replaces_an_installation_only_after_a_confirmation_and_keeps_the_old_files(
    shell: InProcessShell, tmp_path: Path
) -> None:
    file = str(tmp_path / "backup")
    assert shell.json("backup", file)["applications"] == 1
    assert "already exists" in shell("backup", file, code=1).stderr
    shell("applications", "create", "Later")
    assert "--replace" in shell("restore", file, code=1).stderr
    assert "nowhere does not exist" in shell("restore", str(tmp_path / "nowhere"), code=1).stderr
    assert "add --yes" in shell("restore", file, "--replace", code=1).stderr
    assert len(shell.json("applications", "list")) == 2
    restored = shell.json("restore", file, "--replace", "--yes")
    assert len(restored["moved"]) == 2
    assert all(Path(name).is_file() for name in restored["moved"])
    assert [one["name"] for one in shell.json("applications", "list")] == ["Brand"]
    assert shell.json("verify")["drift"] == []


def test_the_restore_command_changes_nothing_if_the_environment_has_another_secret_than_the_backup(
    shell: InProcessShell, tmp_path: Path, sqlite_template: Path
) -> None:
    create_installation(tmp_path / "other", sqlite_template)
    other, file = InProcessShell(tmp_path / "other"), str(tmp_path / "backup")
    other("applications", "create", "Other")
    other("backup", file)
    secret = (shell.folder / "secret").read_text().strip()
    failed = InProcessShell(shell.folder, SHORTENER_SECRET=secret)("restore", file, "--replace", "--yes", code=1)
    assert "SHORTENER_SECRET is not the secret of this backup" in failed.stderr
    assert "Nothing was changed" in failed.stderr
    assert [one["name"] for one in shell.json("applications", "list")] == ["Brand"]
    assert shell("verify").exit_code == 0


def test_a_backup_or_restore_command_that_is_interrupted_during_the_copy_changes_nothing(
    shell: InProcessShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "backup")
    shell("backup", file)
    shell("applications", "create", "Later")
    names = {path.name for path in shell.folder.iterdir()}
    monkeypatch.setattr("shortener.cli.recovery._print_progress", lambda *_: signal.raise_signal(signal.SIGINT))
    shell("backup", str(tmp_path / "interrupted"), code=1)
    assert not (tmp_path / "interrupted").exists()
    shell("restore", file, "--replace", "--yes", code=1)
    assert len(shell.json("applications", "list")) == 2
    assert {path.name for path in shell.folder.iterdir()} - {"shortener.db.lock"} == names - {"shortener.db.lock"}


def test_no_server_can_start_while_a_backup_is_restored(
    shell: InProcessShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "backup")
    shell("backup", file)
    steps = []

    def start_server(done: int, total: int) -> None:
        with pytest.raises(DatabaseInUse, match="another process serves"):
            SqliteDatabase(shell.folder / "shortener.db", owner=True)
        steps.append(done)

    monkeypatch.setattr("shortener.cli.recovery._print_progress", start_server)
    shell("restore", file, "--replace", "--yes")
    assert steps


def test_the_restore_command_ends_with_the_complete_commands_for_the_next_steps(shell: InProcessShell, tmp_path: Path) -> None:
    file = str(tmp_path / "backup")
    shell("backup", file)
    folder = tmp_path / "another folder"
    prefix = f"SHORTENER_DATA_DIR='{folder}' shortener"
    last = InProcessShell(folder)("restore", file).stdout.splitlines()[-1]
    assert last == f"The database is restored. Next: {prefix} verify, then {prefix} serve"


def test_an_installation_is_restored_after_the_loss_of_its_folder_and_later_of_its_secret(server: Server, tmp_path: Path) -> None:
    shell = Shell(server.folder / "data")
    with server.api() as client:
        tracker = {
            "name": "t",
            "url": "http://127.0.0.1:9/",
            "events": ["state"],
            "format": "scg",
            "secret": "whsec_" + "QUJD" * 11,
        }
        assert client.post("/api/v1/trackers", json=tracker).status_code == 201
        body = {"to": "+14085550100", "body": '#track("https://x.example/")'}
        code = client.post("/api/v1/rewrite", json=body).json()["messages"][0]["links"][0]["code"]
    shell("backup", str(tmp_path / "backup"))
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o600
    assert "another process serves" in shell("restore", str(tmp_path / "backup"), "--replace", "--yes", code=1).stderr
    assert "another process serves" in shell("secret", "adopt", "--yes", code=1).stderr
    server.kill()
    (server.folder / "data").rename(server.folder / "lost")

    shell("restore", str(tmp_path / "backup"))
    assert shell.json("verify")["drift"] == []
    server.start()
    with server.client(**{"User-Agent": PHONE}) as client:
        assert client.get(f"/{code}").status_code == 302
    assert server.stop() == 0

    (server.folder / "data" / "secret").unlink()
    assert "secret adopt" in shell("serve", "--port", "0", code=1).stderr
    assert not (server.folder / "data" / "secret").exists()
    adopted = shell.json("secret", "adopt", "--yes")
    assert [one["enabled"] for one in shell.json("gateways", "list") if one["name"] == "simulator"] == [True]
    assert "gateways" not in {value["owner"] for value in adopted["lost"]}, "the simulator has no encrypted values"
    assert ("trackers", "signing secret") in {(value["owner"], value["value"]) for value in adopted["lost"]}
    server.start()
    with server.client(**{"User-Agent": PHONE}) as client:
        assert client.get(f"/{code}").status_code == 302
    with server.api() as client:
        (tracker,) = client.get("/api/v1/trackers").json()["trackers"]
        assert tracker["enabled"] is False
        changed = client.patch(
            f"/api/v1/trackers/{tracker['tracker_id']}", json={"enabled": True, "secret": "whsec_" + "QUJE" * 11}
        )
        assert changed.status_code == 200, changed.text


@pytest.mark.acceptance
@pytest.mark.parametrize("words", [("migrate",), ("serve", "--port", "0")], ids=" ".join)
def test_every_command_creates_the_data_folder_and_its_files_with_private_permissions(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    shell = Shell(tmp_path / "data")
    command = [sys.executable, "-m", "shortener", *words, "--json"]
    process = subprocess.Popen(command, env=shell.environment, stdout=subprocess.PIPE, umask=0o022)
    assert process.stdout is not None
    assert process.stdout.readline()
    if words[0] == "serve":
        process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    process.stdout.close()
    assert stat.S_IMODE(shell.folder.stat().st_mode) == 0o700
    assert {name for name in os.listdir(shell.folder) if stat.S_IMODE((shell.folder / name).stat().st_mode) != 0o600} == set()
