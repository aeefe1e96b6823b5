"""Tests that the vendors' own clients can send through this service if only the base URL and the credentials are changed.

The clients are packages of pip and npm in pinned versions. The tests install them in temporary folders, because some need old
versions of libraries. If the packages cannot be downloaded, the tests are skipped. Syniverse and 23 Telecom have no package, so
their documented calls are sent over HTTP. The scripts that use the clients are in tests/acceptance/vendor_clients.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.endpoint import Endpoint
from tests.acceptance.process import PHONE, Server, serving
from tests.acceptance.vendor_clients import INFOBIP_CLIENTS, PACKAGES, SCRIPTS
from tests.servers import PATIENCE

pytestmark = pytest.mark.slow

TEXT = "Your PIN is 1a2B3c, see https://shop.example/pin?a=1 now"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose application sends through the simulator. The simulator reports each message as delivered."""
    for server in serving(tmp_path_factory.mktemp("vendors")):
        server.command("applications", "update", "1", "--gateway", "simulator")
        with server.api() as client:
            until(lambda: client.post("/api/v1/sms/send", json=SEND).json()["sent"] is True)
        yield server


SEND = {"to": ["+447911123456"], "message": f'#track("https://shop.example/") {TEXT}', "sender_id": "InfoSMS"}


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """For each client of PACKAGES, the folder in which it is installed. pip installs them in parallel, because it mostly waits
    for the network."""
    top = tmp_path_factory.mktemp("clients")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    started = {
        name: subprocess.Popen([*pip, "--target", str(top / name), *packages], stderr=subprocess.PIPE, text=True)
        for name, packages in PACKAGES.items()
    }
    failures = {}
    for name, process in started.items():
        _, errors = process.communicate(timeout=4 * PATIENCE)
        if process.returncode != 0:
            failures[name] = errors[-500:]
    if failures:
        shutil.rmtree(top, ignore_errors=True)
        pytest.skip(f"SKIPPED: pip cannot install the vendors' clients, so none was tested: {failures}")
    yield {name: top / name for name in PACKAGES}
    shutil.rmtree(top, ignore_errors=True)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def run(folder: Path, script: str, *arguments: str) -> dict[str, Any]:
    """Run a script with the packages of a folder. Return the JSON that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "NO_PROXY": "127.0.0.1"}
    command = ["node"] if script.endswith(".mjs") else [sys.executable, "-W", "ignore"]
    done = subprocess.run(
        [*command, str(SCRIPTS / script), *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def check_infobip(server: Server, printed: dict[str, Any], *, shows_text: bool) -> None:
    """Check the responses that a client of Infobip received. Then report that the conversion process of its message has ended."""
    message_id, bulk_id = printed["message_id"], printed["bulk_id"]
    assert printed["status"] == "PENDING_ENROUTE"
    assert printed["segments"] == 1
    assert printed["text_is_visible"] is shows_text
    assert printed["report"] == [message_id, "DELIVERED_TO_HANDSET", bulk_id, "InfoSMS"]
    assert printed["log"] == [message_id, "DELIVERED", "41793026731"]
    assert printed["preview"] == [TEXT, 1]
    assert printed["error"] in ([400, "BAD_REQUEST"], [400, "E400"])
    assert printed.get("violations", ["messages.0.destinations.0.to"]) == ["messages.0.destinations.0.to"]
    assert printed["unauthorized"] == 401
    with server.api() as client:
        status = client.get(f"/api/v1/sms/status/{message_id}").json()
        assert (status["state"], status["links"][0]["url"]) == ("DELIVERED", "https://shop.example/pin?a=1")
        assert len(client.post(f"/ct/1/log/end/{message_id}").json()["processKey"]) == 32
        assert client.get(status["links"][0]["short_url"], headers={"User-Agent": PHONE}).status_code == 302
        until(lambda: client.get(f"/api/v1/sms/status/{message_id}").json()["state"] == "CLICKTHRU")


@pytest.mark.parametrize("name", list(INFOBIP_CLIENTS))
def test_infobips_python_client_can_send_messages_and_read_reports_logs_previews_and_errors(
    server: Server, clients: dict[str, Path], name: str
) -> None:
    script, shows_text = INFOBIP_CLIENTS[name]
    check_infobip(server, run(clients[name], script, server.base, server.first["api_key"], TEXT), shows_text=shows_text)


def test_infobips_node_client_can_send_messages_and_read_reports_logs_previews_and_errors(server: Server, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("SKIPPED: node with npm is not installed (apt-get install nodejs npm), so Infobip's Node client was not tested")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(SCRIPTS / name, tmp_path)
    install = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=4 * PATIENCE)
    if done.returncode != 0:
        pytest.skip(f"SKIPPED: npm cannot install @infobip-api/sdk, so it was not tested: {done.stderr[-500:]}")
    check_infobip(server, run(tmp_path, "infobip.mjs", server.base, server.first["api_key"], TEXT), shows_text=True)


def test_the_client_py3_infobip_can_send_a_message_to_several_numbers(server: Server, clients: dict[str, Path]) -> None:
    printed = run(clients["py3-infobip"], "py3_infobip_client.py", server.base, server.first["api_key"], str(SEND["message"]))
    assert (printed["status"], printed["invalid"], printed["unauthorized"]) == (200, 400, 401)
    assert [sent[:2] for sent in printed["messages"]] == [["41793026731", "PENDING"], ["14085550100", "PENDING"]]
    assert all(text.startswith("http") and text.endswith(TEXT) for text in printed["texts"]), "a short link replaces the directive"
    with server.api() as client:
        urls = [f"/api/v1/sms/status/{message_id}" for *_, message_id in printed["messages"]]
        until(lambda: all(client.get(url).json()["state"] == "DELIVERED" for url in urls))


def test_xoxzos_client_can_send_messages_read_their_status_and_list_them_by_date(server: Server, clients: dict[str, Path]) -> None:
    application = str(server.first["application_id"])
    printed = run(
        clients["xoxzo"],
        "xoxzo_client.py",
        server.base,
        application,
        server.first["api_key"],
        f'#track("https://a.example/") {TEXT}',
    )
    msgid = printed["sent"]["msgid"]
    assert printed["errors"] is None
    assert printed["sent"]["sent"] is True
    assert printed["sent"]["warnings"][-1].startswith("callbackurl is not supported; create a tracker")
    status = printed["status"]
    assert (status["status"], status["parts"], status["recipient"]) == ("DELIVERED", 1, "+818012345678")
    assert status["link_tracking"]["link"] == "https://a.example/"
    found = {condition: msgid in ids for condition, ids in printed["lists"].items()}
    assert list(found.values()) == [True, True, True, True, False, False]
    assert printed["invalid"][0] == 400
    assert printed["unauthorized"] == [401, True]
    assert printed["unknown"] == 404


def test_xoxzos_link_tracking_calls_the_callback_url_at_the_first_click(server: Server, endpoint: Endpoint) -> None:
    form = {"sender": "S", "recipient": "+818012345678", "message": f"{TEXT}", "track_link": "true", "lt_callbackurl": endpoint.url}
    with server.client() as client:
        client.auth = httpx.BasicAuth(str(server.first["application_id"]), server.first["api_key"])
        response = client.post("/sms/messages/", data=form)
        assert response.status_code == 201
        (sent,) = response.json()
        assert client.get(sent["links"][0]["short_url"], headers={"User-Agent": PHONE}).status_code == 302
        until(lambda: len(endpoint.arrived) == 1)
        assert json.loads(endpoint.arrived[0].body)["msgid"] == sent["msgid"]
        assert client.get(f"/sms/messages/{sent['msgid']}/").json()["link_tracking"]["accessed"] is True


def test_syniverses_documented_request_sends_a_message_whose_events_contain_the_returned_id(
    server: Server, endpoint: Endpoint
) -> None:
    request = {
        "from": "sender_id:EjihJOXWJE24O",
        "to": ["+14085550100"],
        "body": 'please visit us at #track("https://shop.example/") now',
        "external_id": "order 7",
        "consent_requirement": "NONE",
    }
    with server.client(Authorization=f"Bearer {server.first['api_key']}", **{"Content-Type": "Application/json"}) as client:
        tracker = {"name": "events", "url": endpoint.url, "events": ["state"], "format": "scg"}
        made = client.post("/api/v1/trackers", json=tracker)
        assert made.status_code == 201, made.text
        response = client.post("/scg-external-api/api/v1/messaging/message_requests", content=json.dumps(request))
        assert response.status_code == 200
        told = response.json()
        assert (told["sent"], told["warnings"]) == (True, [])
        short_url = told["messages"][0]["links"][0]["short_url"]
        message_id = told["messages"][0]["message_id"]
        until(lambda: client.get(f"/api/v1/sms/status/{message_id}").json()["state"] == "DELIVERED")
        assert client.get(short_url, headers={"User-Agent": PHONE}).status_code == 302

        def states() -> list[str]:
            events = [json.loads(one.body)["event"]["fld-val-list"] for one in list(endpoint.arrived)]
            return [one["new_state"] for one in events if one["message_request_id"] == told["id"]]

        until(lambda: "CLICKTHRU" in states())
        assert client.delete(f"/api/v1/trackers/{made.json()['tracker_id']}").status_code in (200, 204)


def test_23_telecoms_documented_requests_send_messages_and_return_their_status_and_statistics(server: Server) -> None:
    with server.api() as client:
        told = client.post("/api/v1/sms/send", json={**SEND, "to": ["+447911123456", "+447911123457"], "priority": "high"}).json()
        assert (told["sent"], told["summary"]["accepted_count"]) == (True, 2)
        assert "priority is not a known field; it was ignored" in told["warnings"]
        message_id = told["messages"][0]["message_id"]
        until(lambda: client.get(f"/api/v1/sms/status/{message_id}").json()["state"] == "DELIVERED")
        for path in ("messages", "messages/unified", "stats", "stats/daily", "stats/by-country"):
            assert client.get(f"/api/v1/sms/{path}").json()["status"] is True
        assert message_id in client.get("/api/v1/sms/messages/unified/export").text
        error = client.post("/api/v1/sms/send", json={**SEND, "to": []}).json()
        assert (error["status"], error["error_code"]) == (False, "INVALID_TO")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/sms/1/text/advanced", {"messages": [{"from": "A", "destinations": [{"to": "41793026731"}], "text": TEXT}]}),
        ("/sms/3/messages", {"messages": [{"sender": "A", "destinations": [{"to": "41793026731"}], "content": {"text": TEXT}}]}),
        ("/sms/messages/", {"sender": "A", "recipient": "+41793026731", "message": TEXT}),
        ("/scg-external-api/api/v1/messaging/message_requests", {"from": "A", "to": ["+41793026731"], "body": TEXT}),
    ],
)
def test_a_send_request_in_a_vendors_format_returns_sent_false_if_the_application_has_no_gateway(
    server: Server, path: str, body: dict[str, Any]
) -> None:
    made = server.command("applications", "create", f"without a gateway {path}")
    with server.client(**{"X-API-Key": made["api_key"]}) as client:
        until(lambda: client.get("/api/v1/sms/stats").status_code == 200)
        told = client.post(path, json=body).json()
        (message,) = told.get("messages", [told])
        assert message["sent"] is False, message
        assert any(warning.startswith("NOT_SENT") for warning in message["warnings"])
