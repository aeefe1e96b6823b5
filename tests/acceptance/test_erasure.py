"""Tests on SQLite that no file of the data folder contains erased data after an erasure, and that clicks continue meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.process import PHONE, Server, serving, wait_until_delivered

NUMBER = "+14085550123"
#: The maximum time until no file contains the erased data. The service needs less: a job erases the data again
#: 5 s after the erasure, and then the checkpoint thread copies the WAL.
SECONDS = 60


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    yield from serving(tmp_path)


def files_with(folder: Path, text: str) -> list[str]:
    """Return the names of the files below a folder that contain a text."""
    return sorted(file.name for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes())


@pytest.mark.parametrize("way", ["call", "command"])
def test_after_an_erasure_no_file_of_the_data_folder_contains_the_number_and_clicks_continue(server: Server, way: str) -> None:
    data = server.folder / "data"
    with server.api() as api, server.client(**{"User-Agent": PHONE}) as handset:
        tracker = {"url": f"{server.base}/healthz", "events": ["click", "state"]}
        assert api.post("/api/v1/trackers", json=tracker).status_code == 201
        batch = [{"to": f"+1408555{number}", "body": 'See #track("https://shop.example/")'} for number in range(1000, 1500)]
        # These messages make the WAL long. Otherwise the clicks below would overwrite the erased data in the WAL.
        assert api.post("/api/v1/rewrite", json={"messages": batch}).status_code == 200
        codes = []
        for to in (NUMBER, "+14085550199"):
            body = {"to": to, "body": 'See #track("https://shop.example/")', "metadata": {"phone": to}}
            answer = api.post("/api/v1/rewrite", json=body, headers={"Idempotency-Key": to})
            codes.append(answer.json()["messages"][0]["links"][0]["code"])
            assert handset.get(f"/{codes[-1]}").status_code == 302
        wait_until_delivered(server)
        assert files_with(data, NUMBER) != []
        if way == "call":
            assert api.post("/api/v1/erasures", json={"phone": NUMBER}).status_code == 200
        else:
            server.command("messages", "erase", "--phone", NUMBER, "--yes")
        deadline = time.monotonic() + SECONDS
        while found := files_with(data, NUMBER):
            assert time.monotonic() < deadline, f"{found} still contain the number"
            assert handset.get(f"/{codes[1]}").status_code == 302
            threading.Event().wait(0.5)  # wait a moment, then check the condition again
        assert files_with(data, "+14085550199") != []
