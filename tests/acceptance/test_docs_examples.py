"""Tests that run each curl command of the page /docs unchanged against a real server."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import threading
from typing import Any

import httpx
import pytest

from shortener.web.docs_page import GENERATED_PARAMETERS, variable_of
from tests.acceptance.endpoint import Endpoint
from tests.acceptance.process import PHONE, Server
from tests.servers import PATIENCE

pytestmark = pytest.mark.slow

#: Operations that delete or replace objects that other examples need. Therefore they run last, in this order.
LAST = (
    "create_token",
    "rotate_token",
    "delete_postback_key",
    "add_opt_out",
    "remove_opt_out",
    "block_host",
    "unblock_host",
    "delete_domain",
    "delete_tracker",
    "delete_gateway",
    "revoke_key",
    "erase_personal_data",
)

#: Statuses outside of 2xx that some examples may return. The examples about doubtful messages get 404, because a message becomes
#: doubtful only if the gateway does not respond.
OTHER_STATUSES = {"follow_link": [302], "resend_send": [404, 409], "discard_send": [404, 409]}


def curl_commands(page: str) -> dict[str, str]:
    """Return the curl command of each operation. The keys are operation ids."""
    found = re.findall(
        r'<div class="inside" id="([^"]+)">(?:(?!<div class="inside").)*?<pre tabindex="0">(curl .*?)</pre>', page, re.DOTALL
    )
    return {name: html.unescape(command) for name, command in found}


def until(client: httpx.Client, path: str, name: str) -> Any:
    """Wait until a list of the API is not empty. Return its first row."""
    for _ in range(round(PATIENCE / 0.05)):
        if rows := client.get(path).json()[name]:
            return rows[0]
        threading.Event().wait(0.05)
    raise AssertionError(f"{path} has no rows")


def run(command: str, variables: dict[str, str]) -> tuple[int, str]:
    """Run a command with the shell. Return the HTTP status and the body of its response."""
    environment = {"PATH": os.environ["PATH"], "NO_PROXY": "*", **variables}
    script = command.replace("curl -s", "curl -s -w '\n%{http_code}'", 1)
    done = subprocess.run(["sh", "-euc", script], env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, (command, done.stderr)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_every_curl_command_of_the_docs_page_works_as_shown(server: Server, endpoint: Endpoint) -> None:
    with server.api() as client:
        commands = curl_commands(client.get("/docs").text)
        operations = {one["operationId"] for path in client.get("/openapi.json").json()["paths"].values() for one in path.values()}
        assert set(commands) == {name for name in operations if not name.startswith("receive_gateway_report")}
        variables = {"BASE": server.base, "KEY": server.first["api_key"], "TOKEN": server.first["tracker_token"]}
        # run these examples first, because other examples use the ids in their responses
        for name in ("rewrite", "create_postback_key", "update_links"):
            status, body = run(commands.pop(name), variables)
            assert status < 300, (name, body)
            variables |= ids_of(name, json.loads(body))
        tracker = {"name": "t", "url": endpoint.url, "events": ["state", "click"], "format": "json"}
        variables["TRACKER_ID"] = str(client.post("/api/v1/trackers", json=tracker).json()["tracker_id"])
        with server.client(**{"User-Agent": PHONE}) as handset:
            handset.get("/" + variables["CODE"])
        variables["DELIVERY_ID"] = until(client, "/api/v1/deliveries", "deliveries")["delivery_id"]
        variables["EVENT_ID"] = until(client, "/api/v1/events", "events")["event_id"]
        sent = client.post("/sms/1/text/advanced", json=INFOBIP).json()
        variables["PROCESS_KEY"] = client.post(f"/ct/1/log/end/{sent['messages'][0]['messageId']}").json()["processKey"]
        variables |= more_ids(client)
        endpoint.wait(1)
        failed = {}
        for name in sorted(commands, key=lambda name: LAST.index(name) if name in LAST else -1):
            expected = {*range(200, 300), *OTHER_STATUSES.get(name, ())}
            status, body = run(commands[name], variables)
            if status not in expected:
                failed[name] = (status, commands[name], body[:300])
        assert failed == {}
        assert {variable_of(name) for name in GENERATED_PARAMETERS} >= set(variables) - {"BASE", "KEY", "TOKEN"}


INFOBIP = {"messages": [{"destinations": [{"to": "+14085550100"}], "text": "x"}], "tracking": {"track": "SMS", "type": "PIN"}}


def ids_of(name: str, body: dict[str, Any]) -> dict[str, str]:
    if name == "rewrite":
        return {"CODE": body["messages"][0]["links"][0]["code"]}
    if name == "create_postback_key":
        return {"POSTBACK_KEY": body["postback_key"], "KEY_ID": str(body["id"])}
    return {"UPDATE_ID": body["update"]["update_id"]}


def more_ids(client: httpx.Client) -> dict[str, str]:
    """Create the objects that the examples use, but that no example creates. Return their ids."""
    key = client.post("/api/v1/keys", json={"name": "other"}).json()
    gateway = client.post("/api/v1/gateways", json={"name": "test", "kind": "simulator"}).json()
    assert gateway["status"] is True, gateway
    return {"API_KEY_ID": str(key["key_id"]), "GATEWAY_ID": str(gateway["gateway_id"])}
