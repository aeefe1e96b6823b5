"""Tests that each API call and each command that changes an installation adds a row to the audit log, in the transaction of the
change.

Each call and each command must be in one of the tables below: it changes something and has an example, or it only reads, or it is
left out for a stated reason. A test here fails until a new call or command is in a table.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import pwd
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from sqlalchemy import Connection, create_engine, select, update

from shortener.accounts.audit import AuditWriter
from shortener.cli import cli
from shortener.container import Service
from shortener.ids import DELIVERY_IDS
from shortener.model import DeliveryStatus, SendStatus, Topic, utcnow
from shortener.portal.admin_audit import ACTIONS
from shortener.reporting import counts
from shortener.reporting.rollups import Basis, Level, series
from shortener.storage import schema
from shortener.storage.database import Database
from tests.cli.shell import InProcessShell, create_installation
from tests.conftest import NOON
from tests.factory import audited_rows
from tests.receiver import Receiver
from tests.rows import Rows
from tests.web.calls import rewrite
from tests.web.openapi_document import openapi_document

#: The time of inserted rows. It makes their ids differ from the ids of rows that the service inserts.
EARLIER = NOON - timedelta(hours=1)
_MESSAGE = "creates messages, which are traffic; the list of messages shows them"
_REPORT = "reports a state, a conversion or a reply, which is traffic"
_NOTHING = "changes nothing: it shows how texts would be rewritten"
#: The API calls that add no row to the audit log, each with the reason.
CALLS_LEFT_OUT = {
    "POST /api/v1/rewrite": _MESSAGE,
    "POST /api/v1/rewrite/preview": _NOTHING,
    "POST /api/v1/sms/send": _MESSAGE,
    "POST /sms/messages/": _MESSAGE,
    "POST /sms/1/text/advanced": _MESSAGE,
    "POST /sms/2/text/advanced": _MESSAGE,
    **{f"POST /sms/{version}/text/{kind}": _MESSAGE for version in (1, 2) for kind in ("single", "multi")},
    "POST /sms/3/messages": _MESSAGE,
    "POST /sms/1/preview": _NOTHING,
    "POST /scg-external-api/api/v1/messaging/message_requests": _MESSAGE,
    "POST /api/v1/sms/inbound": _REPORT,
    "POST /api/v1/sms/status": _REPORT,
    "POST /api/v1/gateways/reports/{report_key}/{reference}": _REPORT,
    "POST /api/v1/gateways/reports/{report_key}": _REPORT,
    "POST /api/v1/track": _REPORT,
    "POST /api/v1/callback/action": _REPORT,
    "POST /api/v1/action/track": _REPORT,
    "POST /action": _REPORT,
    "POST /api/v1/postback/{postback_key}": _REPORT,
    "POST /ct/1/log/end/{messageId}": _REPORT,
}
#: The API calls that change an installation. For each call: the path, the body, and the action in the audit log. In this order,
#: each call succeeds.
CALLS: Mapping[str, tuple[str, Any, str]] = {
    "POST /api/v1/opt-outs": ("/api/v1/opt-outs", {"phone": "+14085550177"}, "opt_out_added"),
    "DELETE /api/v1/opt-outs/{number}": ("/api/v1/opt-outs/+14085550177", None, "opt_out_removed"),
    "POST /api/v1/gateways": ("/api/v1/gateways", {"name": "sim", "kind": "simulator"}, "gateway_created"),
    "PATCH /api/v1/gateways/{gateway_id}": ("/api/v1/gateways/{gateway}", {"enabled": False}, "gateway_changed"),
    "POST /api/v1/gateways/{gateway_id}/test": ("/api/v1/gateways/{gateway}/test", {"to": "+14085550177"}, "gateway_tested"),
    "DELETE /api/v1/gateways/{gateway_id}": ("/api/v1/gateways/{gateway}", None, "gateway_removed"),
    "POST /api/v1/sends/{message_id}/resend": ("/api/v1/sends/held-1/resend", None, "send_resent"),
    "POST /api/v1/sends/{message_id}/discard": ("/api/v1/sends/held-2/discard", None, "send_discarded"),
    "POST /api/v1/trackers": ("/api/v1/trackers", {"url": "{receiver}", "events": ["state"]}, "tracker_created"),
    "PATCH /api/v1/trackers/{tracker_id}": ("/api/v1/trackers/{tracker}", {"events": ["click"]}, "tracker_changed"),
    "POST /api/v1/trackers/{tracker_id}/test": ("/api/v1/trackers/{tracker}/test", None, "test_delivery_sent"),
    "POST /api/v1/deliveries/{delivery_id}/replay": ("/api/v1/deliveries/{dead_1}/replay", None, "delivery_replayed"),
    "POST /api/v1/deliveries/replay": ("/api/v1/deliveries/replay", {"delivery_ids": ["{dead_2}"]}, "deliveries_replayed"),
    "POST /api/v1/trackers/{tracker_id}/replay": ("/api/v1/trackers/{tracker}/replay", None, "deliveries_replayed"),
    "DELETE /api/v1/trackers/{tracker_id}": ("/api/v1/trackers/{tracker}", None, "tracker_deleted"),
    "PATCH /api/v1/application": ("/api/v1/application", {"click_events": "every"}, "settings_changed"),
    "POST /api/v1/application/callback-secret": ("/api/v1/application/callback-secret", None, "callback_secret_rotated"),
    "POST /api/v1/keys": ("/api/v1/keys", {"name": "till", "permissions": ["sms.send"]}, "api_key_created"),
    "PATCH /api/v1/keys/{api_key_id}": ("/api/v1/keys/{key}", {"name": "shop"}, "api_key_changed"),
    "DELETE /api/v1/keys/{api_key_id}": ("/api/v1/keys/{key}", None, "api_key_revoked"),
    "POST /api/v1/tokens": ("/api/v1/tokens", None, "tracker_token_rotated"),
    "POST /api/v1/tokens/rotate": ("/api/v1/tokens/rotate", None, "tracker_token_rotated"),
    "POST /api/v1/postback-keys": ("/api/v1/postback-keys", {"name": "network"}, "postback_key_created"),
    "POST /api/v1/postback-keys/{key_id}/rotate": ("/api/v1/postback-keys/{postback}/rotate", None, "postback_key_rotated"),
    "DELETE /api/v1/postback-keys/{key_id}": ("/api/v1/postback-keys/{postback}", None, "postback_key_revoked"),
    "PATCH /api/v1/links/{code}": ("/api/v1/links/{code}", {"enabled": False}, "link_changed"),
    "POST /api/v1/links/update": ("/api/v1/links/update", {"campaign": "one", "enabled": False}, "links_changed"),
    "POST /api/v1/links/updates/{update_id}/stop": ("/api/v1/links/updates/{update}/stop", None, "links_update_stopped"),
    "POST /api/v1/domains": ("/api/v1/domains", {"domain": "go.brand.example"}, "domain_added"),
    "PATCH /api/v1/domains/{domain}": ("/api/v1/domains/go.brand.example", {"enabled": False}, "domain_disabled"),
    "DELETE /api/v1/domains/{domain}": ("/api/v1/domains/go.brand.example", None, "domain_removed"),
    "POST /api/v1/blocked-hosts": ("/api/v1/blocked-hosts", {"host": "bad.example"}, "host_blocked"),
    "DELETE /api/v1/blocked-hosts/{host}": ("/api/v1/blocked-hosts/bad.example", None, "host_unblocked"),
    "POST /api/v1/erasures": ("/api/v1/erasures", {"message_id": "m-1"}, "data_erased"),
}


def fill(value: Any, names: Mapping[str, str]) -> Any:
    """Replace each {name} in the texts of an example by its value."""
    if isinstance(value, dict):
        return {key: fill(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [fill(one, names) for one in value]
    return value.format_map(names) if isinstance(value, str) else value


async def stored(database: Database) -> dict[str, list[Any]]:
    """Return all rows of the database, by the name of the table."""

    def read(connection: Connection) -> dict[str, list[Any]]:
        tables = schema.metadata.sorted_tables
        return {table.name: list(connection.execute(select(table).order_by(*table.primary_key)).all()) for table in tables}

    return await database.read(read)


def add_dead(connection: Connection, tracker: int, number: int) -> list[str]:
    """Insert dead deliveries to a tracker. Return their ids."""
    row, status = Rows(connection, EARLIER), DeliveryStatus.DEAD.value
    events = [row.event(None, topics=Topic.OPERATIONS.value) for _ in range(number)]
    found = [row.delivery(event, tracker_id=tracker, lane=f"t{tracker}", status=status) for event in events]
    return [DELIVERY_IDS.encode(one) for one in found]


def add_held(connection: Connection, gateway: int) -> None:
    """Insert two messages that are held."""
    row = Rows(connection, EARLIER)
    for name in ("held-1", "held-2"):
        message = row.message(EARLIER, message_id=name)
        row.send(message, gateway_id=gateway, status=int(SendStatus.HELD), finished_at=None)


def test_each_call_of_the_api_that_changes_something_has_an_example_or_a_reason_why_it_is_not_in_the_audit_log() -> None:
    documented = {f"{method.upper()} {path}" for path, methods in openapi_document()["paths"].items() for method in methods}
    documented = {call for call in documented if not call.startswith(("GET ", "HEAD "))}
    assert documented == {*CALLS, *CALLS_LEFT_OUT}
    assert not CALLS.keys() & CALLS_LEFT_OUT.keys()


async def test_each_call_of_the_api_that_changes_something_adds_a_row_to_the_audit_log_or_changes_nothing(
    client: httpx.AsyncClient, service: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = await rewrite(client, "m-1")
    await rewrite(client, "m-2", campaign="one")
    names = {"receiver": receiver.url(), "code": message["links"][0]["code"]}

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("the audit log is full")

    for call, (path, body, action) in CALLS.items():
        method, url, content = call.partition(" ")[0], fill(path, names), fill(body, names)
        before = await stored(service.database)
        with monkeypatch.context() as patch:
            patch.setattr(AuditWriter, "add", refuse)
            assert (await client.request(method, url, json=content)).status_code == 500, call
        assert await stored(service.database) == before, f"{call} changes something although its audit row is not stored"

        known = len(await audited_rows(service.database))
        response = await client.request(method, url, json=content)
        assert response.is_success, (call, response.text)
        added = (await audited_rows(service.database))[known:]
        assert [(row.operator, row.action, row.application_id) for row in added] == [("key 1", action, 1)], call
        assert action in ACTIONS, "the page of the audit log has a label for each action"

        answer = response.json()
        if call == "POST /api/v1/gateways":
            names["gateway"] = str(answer["gateway_id"])
        elif call == "PATCH /api/v1/gateways/{gateway_id}":
            await service.database.write(add_held, int(names["gateway"]))
        elif call == "POST /api/v1/trackers":
            names["tracker"] = str(answer["tracker_id"])
            dead = await service.database.write(add_dead, answer["tracker_id"], 3)
            names |= {f"dead_{number}": one for number, one in enumerate(dead, 1)}
        elif call == "POST /api/v1/keys":
            names["key"] = str(answer["key_id"])
        elif call in ("POST /api/v1/postback-keys", "POST /api/v1/postback-keys/{key_id}/rotate"):
            names["postback"] = str(answer["id"])
        elif call == "POST /api/v1/links/update":
            names["update"] = answer["update"]["update_id"]


_SERVES = "serves; it stores only the first application and its own state, and the first application has a row"
_READS = "reads"
#: The commands that add no row to the audit log, each with the reason.
COMMANDS_LEFT_OUT = {
    "serve": _SERVES,
    "deliver": _SERVES,
    "send": "creates a message, which is traffic, as the call of the API does",
    "backup": "writes a file and changes nothing in the installation",
    "export": _READS,
    "demo": "works on an installation of its own, which it deletes",
    "listen": "receives requests and stores nothing",
    "migrate": "changes the schema, as the start of a server does, and no data; the database contains its schema version",
    "copy": "fills another database, which gets the audit log of its source and must be equal to it",
    "doctor": _READS,
    "stats": _READS,
    "operators list": _READS,
    "conversions refused": _READS,
    **{f"{group} list": _READS for group in ("applications", "keys", "gateways", "sends", "prices", "opt-outs", "trackers")},
    **{f"{group} list": _READS for group in ("deliveries", "postback-keys", "conversions", "messages", "clicks", "links")},
    **{f"{group} list": _READS for group in ("hosts", "domains")},
    **{f"{group} show": _READS for group in ("applications", "gateways", "sends", "balance", "trackers", "deliveries")},
    **{f"{group} show": _READS for group in ("messages", "links")},
    "deliveries retell": "the former name of `deliveries requeue`",
    "clicks rejudge": "the former name of `clicks reclassify`",
}
#: The commands that change an installation. For each command: the arguments, and the actions in the audit log. In this order,
#: each command succeeds.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "applications create": ("Second", "application_created"),
    "applications update": (
        "2 --name Shop --set click_events=every --gateway simulator --add-domain https://go.brand.example --disable --yes",
        "settings_changed application_renamed application_disabled settings_changed domain_added",
    ),
    "applications rotate-callback-secret": ("1", "callback_secret_rotated"),
    "operators invite": ("Mia", "operator_invited"),
    "operators grant": ("Mia --role support --application 1", "role_granted"),
    "operators reset": ("Mia --yes", "operator_reset"),
    "operators disable": ("Mia --yes", "operator_disabled"),
    "keys create": ("1 --name till", "api_key_created"),
    "keys update": ("3 --rate-limit 5", "api_key_changed"),
    "keys revoke": ("3 --yes", "api_key_revoked"),
    "tokens rotate": ("1", "tracker_token_rotated"),
    "postback-keys create": ("1 --name network", "postback_key_created"),
    "postback-keys rotate": ("1", "postback_key_rotated"),
    "postback-keys revoke": ("2", "postback_key_revoked"),
    "gateways add": ("sim --kind simulator", "gateway_created"),
    "gateways update": ("2 --timeout 3", "gateway_changed"),
    "gateways test": ("2 +14085550177", "gateway_tested"),
    "gateways remove": ("2 --yes", "gateway_removed"),
    "sends resend": ("{held_1} --application 1", "send_resent"),
    "sends discard": ("{held_2} --application 1 --yes", "send_discarded"),
    "balance set": ("1 10.50", "balance_changed"),
    "balance add": ("1 0.25", "balance_changed"),
    "balance remove": ("1", "balance_removed"),
    "prices set": ("49 0.07", "price_set"),
    "prices remove": ("49", "price_removed"),
    "opt-outs add": ("1 +14085550177", "opt_out_added"),
    "opt-outs remove": ("1 +14085550177", "opt_out_removed"),
    "trackers add": ("1 http://127.0.0.1:9/ --event click", "tracker_created"),
    "trackers update": ("2 --name shop", "tracker_changed"),
    "trackers test": ("2", "test_delivery_sent"),
    "trackers remove": ("2 --yes", "tracker_deleted"),
    "deliveries replay": ("--tracker 1 --yes", "deliveries_replayed"),
    "deliveries requeue": ("", "events_requeued"),
    "links disable": ("{code}", "link_changed"),
    "links enable": ("{code}", "link_changed"),
    "links update": ("{code} --disable --yes", "link_changed"),
    "hosts block": ("bad.example --yes", "host_blocked"),
    "hosts unblock": ("bad.example", "host_unblocked"),
    "domains add": ("1 https://two.brand.example --home-url https://brand.example/", "domain_added domain_changed"),
    "domains update": ("two.brand.example --default", "domain_made_default"),
    "domains disable": ("two.brand.example --yes", "domain_disabled"),
    "domains enable": ("two.brand.example", "domain_enabled"),
    "domains remove": ("two.brand.example --yes", "domain_removed"),
    "clicks reclassify": ("--since {two_days_ago}", "hits_reclassified"),
    "messages erase": ("--message {erased} --application 1 --yes", "data_erased"),
    "verify": ("--repair --since {an_hour_ago}", "counts_repaired"),
    "purge": ("", "purge_started"),
    "secret adopt": ("--yes", "secret_adopted"),
    "restore": ("{backup} --replace --yes", "backup_restored"),
}
#: Commands that change no table except the audit log.
CHANGES_NO_TABLE = {"gateways test"}


def leaf_commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the names of all commands that are not groups."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from leaf_commands(found, (*path, name))
    else:
        yield " ".join(path)


def test_each_command_that_changes_something_has_an_example_or_a_reason_why_it_is_not_in_the_audit_log() -> None:
    assert set(leaf_commands(cli)) == {*COMMANDS, *COMMANDS_LEFT_OUT}
    assert not COMMANDS.keys() & COMMANDS_LEFT_OUT.keys()


def prepare_commands(shell: InProcessShell) -> dict[str, str]:
    """Create the objects that the example commands change. Return the values of the {names} in the examples."""
    shell("applications", "create", "First")
    shell("applications", "update", "1", "--gateway", "simulator")
    text = 'Look #track("https://shop.example/")'
    messages = [shell.json("send", "1", f"+1408555010{number}", text) for number in range(3)]
    engine = create_engine(f"sqlite:///{shell.folder / 'shortener.db'}")
    with engine.begin() as connection:
        row = Rows(connection, EARLIER)
        row.tracker(1, enabled=True)
        row.event(None, fanned_out=True, facts=schema.QUARANTINED)
        add_dead(connection, 1, 2)
        connection.execute(update(schema.sends).values(status=int(SendStatus.HELD), attempt=1, next_at=utcnow()))
        _add_work(connection)
    engine.dispose()
    ids = [str(one["message_id"]) for one in messages]
    times = {"two_days_ago": utcnow() - timedelta(days=2), "an_hour_ago": utcnow() - timedelta(hours=1)}
    names = {"code": messages[0]["links"][0]["code"], "erased": ids[0], "held_1": ids[1], "held_2": ids[2]}
    return names | {name: f"{at:%Y-%m-%dT%H:%M:%SZ}" for name, at in times.items()}


def _add_work(connection: Connection) -> None:
    """Insert rows that the commands `clicks reclassify`, `verify --repair` and `purge` will change."""
    row = Rows(connection)
    message = row.message(utcnow() - timedelta(days=1))
    link = row.link(message)
    row.first_click(message, link)
    row.hit(link, user_agent="curl/8.9.1")  # the stored verdict is human, and the current rules classify the hit as suspected
    row.complete_message(utcnow() - timedelta(days=400))
    while counts.fold(connection):
        pass
    rollups = schema.rollups.c
    period = connection.execute(select(schema.rollups).where(rollups.series == series(Basis.EVENT, Level.QUARTER))).first()
    assert period is not None
    of_period = (rollups.group_id == period.group_id, rollups.series == period.series, rollups.period == period.period)
    connection.execute(update(schema.rollups).where(*of_period).values(data={**period.data, "messages": 99}))


@pytest.mark.slow
def test_each_command_that_changes_something_adds_a_row_to_the_audit_log_or_changes_nothing(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    create_installation(folder, sqlite_template)
    shell = InProcessShell(folder, SHORTENER_ALLOW_HTTP_TARGETS="true")
    names = {**prepare_commands(shell), "backup": str(tmp_path / "backup")}

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("the audit log is full")

    def read(query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(folder / "shortener.db")) as connection:
            return connection.execute(query).fetchall()

    def everything() -> dict[str, list[Any]]:
        with contextlib.closing(sqlite3.connect(folder / "shortener.db")) as connection:
            tables = [table.name for table in schema.metadata.sorted_tables]
            return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables}

    user = f"command line ({pwd.getpwuid(os.getuid()).pw_name})"
    for command, (words, actions) in COMMANDS.items():
        if command == "secret adopt":
            shell("backup", names["backup"])
            (folder / "secret").unlink()
        arguments = (*command.split(), *(word.format_map(names) for word in words.split()))
        # Skip this check for `restore`. It replaces the database first, and then adds its audit row.
        if command != "restore":
            before = everything()
            with monkeypatch.context() as patch:
                patch.setattr(AuditWriter, "add", refuse)
                with pytest.raises(RuntimeError, match="the audit log is full"):
                    shell(*arguments)
            assert everything() == before, f"{command} changes something although its audit row is not stored"

        known = 0 if command == "restore" else read("SELECT count(*) FROM audit_log")[0][0]
        # Nothing listens at the URL of the tracker. Therefore the command that tests the tracker fails, after it has stored the
        # attempt.
        shell(*arguments, code=1 if command == "trackers test" else 0)
        added = read("SELECT operator, action FROM audit_log ORDER BY id")[known:]
        if command == "restore":
            added = added[-1:]
        else:
            changed = {table for table, found in everything().items() if found != before[table]} - {"audit_log"}
            assert bool(changed) is (command not in CHANGES_NO_TABLE), (command, changed)
        assert added == [(user, action) for action in actions.split()], command
        assert {*actions.split()} <= ACTIONS.keys(), "the page of the audit log has a label for each action"


def test_only_the_audited_functions_are_used_by_portal_api_and_command_line() -> None:
    """For some functions, there is a second function that also adds an audit row. The code that serves people must import only
    the second one."""
    root = Path(__file__).parents[1] / "shortener"
    plain = {
        "shortener.accounts.administration": {
            *("create_application", "ensure_default", "update_application", "add_domain", "update_domain", "remove_domain"),
            *("block_host", "unblock_host"),
        },
        "shortener.accounts.credentials": {"create_key", "update_key", "revoke_key", "rotate_token"},
        "shortener.accounts.postback_keys": {"create_postback_key", "rotate_postback_key", "revoke_postback_key"},
        "shortener.messages.balances": {"change_balance", "remove_balance"},
        "shortener.messages.prices": {"set_price", "remove_price"},
        "shortener.messages.opt_outs": {"add_opt_out", "remove_opt_out"},
    }
    names = [(module, name) for module, functions in plain.items() for name in functions]
    assert [name for module, name in names if not hasattr(importlib.import_module(module), name)] == []
    found = []
    for file in (one for package in ("cli", "web", "portal", "container") for one in (root / package).rglob("*.py")):
        tree = ast.parse(file.read_text())
        # The modules of `plain` that the file imports: for each name under which the file imports one, its functions in `plain`.
        modules: dict[str, set[str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if alias.name in plain.get(node.module or "", ()):
                        found.append(f"{file.name}: {node.module}.{alias.name}")
                    if (module := f"{node.module}.{alias.name}") in plain:
                        modules[alias.asname or alias.name] = plain[module]
        found += [
            f"{file.name}: {node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in modules.get(node.value.id, ())
        ]
    assert found == []
