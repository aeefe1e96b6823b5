"""Tests of `shortener links`, `hosts` and `domains`. A running server must apply the changes within a second."""

import contextlib
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from shortener.clicks.link_updates import LinkUpdates
from shortener.errors import StoreUnavailable
from shortener.storage.clock_guard import PURGE_CLOCK, read_uptime
from tests.acceptance.process import PHONE, Server
from tests.cli.shell import InProcessShell, create_installation
from tests.servers import PATIENCE, SOON_SECONDS


@pytest.fixture
def shell(tmp_path: Path, sqlite_template: Path) -> InProcessShell:
    create_installation(tmp_path / "data", sqlite_template)
    return InProcessShell(tmp_path / "data")


def becomes(client: httpx.Client, path: str, status: int) -> float:
    """Request the path until the response has this status. Return the elapsed seconds. Fail after SOON_SECONDS seconds."""
    began = time.monotonic()
    while client.get(path, headers={"User-Agent": PHONE}).status_code != status:
        assert time.monotonic() - began < SOON_SECONDS, f"the status is not {status} after {SOON_SECONDS} seconds"
    return time.monotonic() - began


def test_commands_disable_links_hosts_domains_and_applications_while_a_server_runs(server: Server) -> None:
    shell = InProcessShell(server.folder / "data")
    number = str(server.first["application_id"])
    domain = shell.json("domains", "add", number, "https://go.brand.example", "--fallback-url", "https://x.example/over")
    assert (domain["host"], domain["enabled"], domain["fallback_url"]) == ("go.brand.example", True, "https://x.example/over")
    with server.api() as client:
        deadline = time.monotonic() + SOON_SECONDS
        short_url = ""
        while not short_url.startswith("https://go.brand.example/"):
            assert time.monotonic() < deadline, f"the new domain is not known after {SOON_SECONDS} seconds"
            answer = client.post("/api/v1/rewrite", json={"to": "+14085550100", "body": '#track("https://x.example/")'})
            short_url = answer.json()["messages"][0]["links"][0]["short_url"]
        path = "/" + short_url.rsplit("/", 1)[1]
        code = path[1:]
        becomes(client, path, 302)

        assert shell.json("links", "disable", code)["off_by"] == "link"
        assert client.get(path, headers={"User-Agent": PHONE}).status_code == 410, "a disabled link returns 410 at once"
        assert shell.json("links", "enable", code)["state"] == "live"
        assert client.get(path, headers={"User-Agent": PHONE}).status_code == 302

        for off, on in (
            (("hosts", "block", "x.example"), ("hosts", "unblock", "x.example")),
            (("hosts", "block", "*.example", "--application", number), ("hosts", "unblock", "*.example", "--application", number)),
            (("domains", "disable", "go.brand.example"), ("domains", "enable", "go.brand.example")),
            (("applications", "update", number, "--disable"), ("applications", "update", number, "--enable")),
        ):
            shell(*off)
            becomes(client, path, 410)
            shell(*on)
            becomes(client, path, 302)
        assert shell.json("links", "show", code)["state"] == "live"


def test_commands_show_a_link_as_live_that_redirects_after_the_clock_moved_ahead(shell: InProcessShell) -> None:
    shell("applications", "create", "Brand")
    shell.json("send", "1", "+14085550101", '#track("https://shop.example/")', code=1)  # no gateway is selected
    [link] = shell.json("links", "list")
    uptime, hour_ms = read_uptime(), 3_600_000
    now = time.time_ns() // 1_000_000
    with contextlib.closing(sqlite3.connect(shell.folder / "shortener.db")) as database, database:
        # Store that the purge ran a moment ago and read a clock that was five hours behind. The clock has moved ahead since.
        reading = " ".join(map(str, (now - 5 * hour_ms, 0, 0, *uptime)))
        database.execute("INSERT INTO installation (name, value) VALUES (?, ?)", (PURGE_CLOCK, reading))
        database.execute("UPDATE links SET expires_at = ?", (now - hour_ms,))
    assert [one["state"] for one in shell.json("links", "list")] == ["live"]
    assert shell.json("links", "show", link["code"])["state"] == "live"
    with contextlib.closing(sqlite3.connect(shell.folder / "shortener.db")) as database, database:
        database.execute("UPDATE links SET expires_at = ?", (now - 6 * hour_ms,))
    assert shell.json("links", "show", link["code"])["state"] == "expired"


def test_commands_list_domains_and_blocked_hosts(shell: InProcessShell) -> None:
    number = shell.json("applications", "create", "Brand", "--domain", "https://go.brand.example")["application_id"]
    shell("domains", "add", str(number), "https://two.brand.example")
    shell("domains", "disable", "GO.brand.example")
    assert shell.json("domains", "update", "two.brand.example", "--fallback-url", "https://x.example/")["fallback_url"]

    def values(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
        return tuple(row[name] for name in names)

    listed = shell.json("domains", "list", str(number))
    assert [values(row, "host", "enabled", "new_links") for row in listed] == [
        ("go.brand.example", False, False),
        ("two.brand.example", True, True),
    ]
    shell("hosts", "block", "Evil.example")
    shell("hosts", "block", "*.evil.example", "--application", str(number))
    listed = shell.json("hosts", "list")
    assert [values(row, "host", "application_id") for row in listed] == [("evil.example", None), ("*.evil.example", number)]
    assert "evil.example" in shell("hosts", "list").stdout


def test_commands_for_an_unknown_link_domain_or_host_fail_with_exit_code_1(shell: InProcessShell) -> None:
    assert "NOT_FOUND" in shell("links", "disable", "nosuchcode", code=1).stderr
    assert "NOT_FOUND" in shell("domains", "disable", "nosuch.example", code=1).stderr
    assert "NOT_FOUND" in shell("hosts", "unblock", "x.example", code=1).stderr
    assert "must be a host without scheme" in shell("hosts", "block", "https://x.example", code=2).stderr


def test_commands_change_the_link_path_and_the_app_files_of_a_domain_and_remove_the_domain(
    shell: InProcessShell, tmp_path: Path
) -> None:
    number = str(shell.json("applications", "create", "dlt")["application_id"])
    added = shell.json("domains", "add", number, "https://go.dlt.example/ABCDEF", "--home-url", "https://dlt.example/")
    assert (added["base_url"], added["path"], added["home_url"]) == (
        "https://go.dlt.example/ABCDEF",
        "/ABCDEF",
        "https://dlt.example/",
    )
    assert shell.json("domains", "add", number, "https://two.dlt.example/{sender}", "--default")["new_links"]
    file = tmp_path / "assetlinks.json"
    file.write_text('[{"relation": []}]')
    changed = shell.json("domains", "update", "go.dlt.example", "--path", "", "--assetlinks", str(file), "--disable")
    assert (changed["path"], changed["assetlinks"], changed["enabled"]) == ("", [{"relation": []}], False)
    removed = shell("domains", "remove", "two.dlt.example", "--json", "--yes")
    assert orjson.loads(removed.stdout) == {"host": "two.dlt.example", "removed": True}
    no_domain = f"Warning: application {number} (dlt) has no domain for new links: every rewrite of a text with links now fails"
    assert no_domain in removed.stderr
    assert f"`shortener applications update {number} --set allow_shared_host=true`" in removed.stderr
    assert no_domain not in shell("domains", "enable", "go.dlt.example").stderr
    assert no_domain in shell("domains", "disable", "go.dlt.example", "--yes").stderr
    shell("applications", "update", number, "--set", "allow_shared_host=true")
    assert no_domain not in shell("domains", "update", "go.dlt.example", "--disable", "--yes").stderr
    assert [row["host"] for row in shell.json("domains", "list", number)] == ["go.dlt.example"]
    assert "NOT_FOUND" in shell("domains", "remove", "two.dlt.example", code=1).stderr
    assert "use at least one option" in shell("domains", "update", "go.dlt.example", code=2).stderr
    assert "wildcard" in shell("domains", "add", number, "https://*.dlt.example", code=2).stderr
    assert "invalid host name" in shell("domains", "add", number, "https://-bad-.com", code=2).stderr
    for url in ("https://go.dlt.example:99999", "https://[::1"):
        assert "domain: is not a valid URL" in shell("domains", "add", number, url, code=2).stderr
    dotted = shell.json("domains", "add", number, "https://Dot.dlt.example.:8443", "--home-url", "https://dlt.example/")
    assert dotted["host"] == "dot.dlt.example:8443"
    assert "127.0.0.1 is not a public address" in shell("domains", "add", number, "http://127.0.0.1:8000").stderr
    assert "localhost is a name of one machine" in shell("domains", "add", number, "http://localhost:8000").stderr
    assert "finds no DNS address for no.dlt.invalid" in shell("domains", "add", number, "https://no.dlt.invalid").stderr
    created = shell("applications", "create", "x", "--domain", "https://go.dlt.invalid")
    assert "finds no DNS address for go.dlt.invalid" in created.stderr
    assert created.output.index("api_key") < created.output.index("finds no DNS address"), "the DNS look-up follows the credentials"
    added = shell("applications", "update", number, "--add-domain", "https://two.dlt.invalid").stderr
    assert "finds no DNS address for two.dlt.invalid" in added


def test_the_links_commands_list_links_and_change_one_link_or_many_links(server: Server) -> None:
    shell = InProcessShell(server.folder / "data")
    number = str(server.first["application_id"])
    headers = {"X-API-Key": str(server.first["api_key"]), "User-Agent": PHONE}
    with httpx.Client(base_url=server.base, headers=headers, timeout=PATIENCE) as client:
        body = '#trackurl("https://x.example/menu","menu") #track("https://x.example/shop")'
        request = {"to": ["+14085550100", "+14085550101"], "body": body, "campaign": "one"}
        sent = client.post("/api/v1/rewrite", json=request).json()["messages"]
        codes = [link["code"] for message in sent for link in message["links"]]
        changed = shell.json("links", "update", codes[0], "--url", "https://new.example/", "--expires-at", "2030-01-01")
        assert (changed["url"], changed["expires_at"]) == ("https://new.example/", "2030-01-02T00:00:00Z"), "as in the API"
        assert [entry["by"] for entry in changed["history"]] == ["command line"]
        shown = shell("links", "update", codes[0], "--disable", "--yes").stdout.partition("history\n")[2].splitlines()
        assert len(shown) == 2, "one line for each change"
        assert shown[0].endswith("  command line: enabled true -> false")
        assert "  command line: url https://x.example/menu -> https://new.example/, expires_at " in shown[1]
        assert "\\n" not in shell("links", "update", codes[0], "--enable").stdout
        assert client.get(f"/{codes[0]}").headers["location"] == "https://new.example/"
        done = shell.json("links", "update", "--application", number, "--campaign", "one", "--url", "https://all.example/")
        assert (done["state"], done["total"], done["done"], done["changed"]) == ("done", 4, 4, 4)
        assert client.get(f"/{codes[3]}").headers["location"] == "https://all.example/"
    listed = shell.json("links", "list", number, "--campaign", "one")
    assert sorted(row["code"] for row in listed) == sorted(codes)
    assert {row["code"]: row["clicks"] for row in listed} == {codes[0]: 1, codes[1]: 0, codes[2]: 0, codes[3]: 1}
    assert len(shell.json("links", "list", number, "--label", "menu")) == 2
    assert "command line: url https://x.example/shop -> https://all.example/" in shell("links", "show", codes[1]).stdout
    assert "name either CODE" in shell("links", "update", "--url", "https://x.example/", code=2).stderr
    assert "nothing to change" in shell("links", "update", codes[0], code=2).stderr
    assert "INVALID_REQUEST" in shell("links", "update", codes[0], "--url", "ftp://x", code=2).stderr


def test_commands_that_set_a_fallback_url_print_warnings_about_its_macros_to_stderr(shell: InProcessShell) -> None:
    number = str(shell.json("applications", "create", "shop")["application_id"])
    fallback = ("--fallback-url", "https://shop.example/{{phone}}")
    for command in (
        ("domains", "add", number, "https://go.brand.example", *fallback),
        ("domains", "update", "go.brand.example", *fallback),
        ("applications", "update", number, "--set", f"fallback_url={fallback[1]}"),
    ):
        assert "Warning: fallback_url " in shell(*command).stderr, command
    assert shell("domains", "update", "go.brand.example", "--fallback-url", "https://shop.example/").stderr == ""


@pytest.fixture
def interrupted(shell: InProcessShell, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[str, ...], str]:
    """A link update that was interrupted by an error of the database: the command, and its error. The lease of the update has
    ended."""
    number = str(shell.json("applications", "create", "brand")["application_id"])
    shell("send", number, "+14085550100", '#trackurl("https://x.example/","menu")', code=1)  # no gateway is selected
    command = ("links", "update", "--application", number, "--label", "menu", "--disable", "--yes")

    async def fail(*_: Any) -> None:
        raise StoreUnavailable("down")

    with monkeypatch.context() as patched:
        patched.setattr(LinkUpdates, "_perform_batch", fail)
        error = shell(*command, code=1).stderr
    _query(shell, "UPDATE link_updates SET lease_until = NULL")
    return command, error


def _query(shell: InProcessShell, statement: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(shell.folder / "shortener.db")) as connection, connection:
        return connection.execute(statement).fetchall()


@pytest.mark.parametrize("option", ["--campaign", "--label", "--destination"])
def test_an_update_of_links_that_matches_none_asks_nothing_and_says_so(
    shell: InProcessShell, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    number = str(shell.json("applications", "create", "brand")["application_id"])
    monkeypatch.setattr("shortener.cli.common.is_terminal", lambda: True)
    command = ("links", "update", "--application", number, option, "https://nosuch.example/", "--disable")
    result = shell(*command)
    words = f"nothing was changed: application {number} has no links with {option[2:]} 'https://nosuch.example/'"
    assert (result.stdout.strip(), result.stderr) == (words, "")
    assert shell.json(*command) == {"state": "done", "total": 0, "done": 0, "changed": 0}
    assert "there is no application 9" in shell(*command[:3], "9", *command[4:], code=1).stderr.lower()


def test_adding_a_domain_again_with_another_path_names_the_command_that_changes_the_path(shell: InProcessShell) -> None:
    number = str(shell.json("applications", "create", "brand", "--domain", "https://go.brand.example")["application_id"])
    error = shell("domains", "add", number, "https://go.brand.example/ABCDEF", code=1).stderr
    command = "shortener domains update go.brand.example --path /ABCDEF"
    assert f"`{command}`" in error
    assert 'PATCH /api/v1/domains/go.brand.example with {"path": "/ABCDEF"}' in error
    shell(*command.split()[1:])
    error = shell("domains", "add", number, "https://go.brand.example", code=1).stderr
    assert "`shortener domains update go.brand.example --path ''`" in error
    other = str(shell.json("applications", "create", "other")["application_id"])
    assert "--path" not in shell("domains", "add", other, "https://go.brand.example/X", code=1).stderr


def test_an_update_of_links_that_the_database_interrupts_is_reported_as_stored(
    shell: InProcessShell, interrupted: tuple[tuple[str, ...], str]
) -> None:
    command, error = interrupted
    assert re.search(r"the update \w+ is stored, but not complete: down\. A running server continues it", error), error
    assert shell.json(*command)["state"] == "done"
    assert _query(shell, "SELECT state FROM link_updates") == [("done",)] * 2, "the next command performs the earlier one first"


def test_an_earlier_update_of_links_that_fails_does_not_stop_the_next_one(
    shell: InProcessShell, interrupted: tuple[tuple[str, ...], str]
) -> None:
    _query(shell, "UPDATE link_updates SET filter = '[]'")
    assert shell.json(*interrupted[0])["state"] == "done"
    assert _query(shell, "SELECT state FROM link_updates ORDER BY id") == [("stopped",), ("done",)]
