from __future__ import annotations

import asyncio
import sys
import tomllib

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shortener.accounts.credentials import Credentials
from shortener.container import Service
from shortener.settings import Settings
from shortener.tracing import Tracer, TracingUnavailable, open_tracer, trace_ids
from tests.document_blocks import ROOT
from tests.receiver import Receiver

PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)


@pytest.fixture
def exporter(service: Service) -> InMemorySpanExporter:
    """An exporter that keeps the trace spans of the service in memory, where a test can read them."""
    exporter = InMemorySpanExporter()
    service.use_tracer(Tracer(exporter))
    return exporter


async def test_one_trace_contains_the_rewrite_the_click_the_conversion_and_their_deliveries(
    service: Service, client: httpx.AsyncClient, credentials: Credentials, receiver: Receiver, exporter: InMemorySpanExporter
) -> None:
    tracker = {"name": "t", "url": receiver.url("/"), "events": ["state", "conversion"], "format": "json"}
    assert (await client.post("/api/v1/trackers", json=tracker)).status_code == 201
    body = {"to": "+14085550100", "body": '#track("https://x.example/")', "message_id": "m-1"}
    link = (await client.post("/api/v1/rewrite", json=body)).json()["messages"][0]["links"][0]
    assert (await client.get(f"/{link['code']}", headers={"User-Agent": PHONE})).status_code == 302
    headers = {"X-Api-Token": credentials.tracker_token}
    await client.get("/api/v1/track", params={"message_id": "m-1", "action": "sale"}, headers=headers)
    await service.fanout.flush()
    await service.dispatcher.flush()
    assert service.tracer is not None
    await asyncio.to_thread(service.tracer.flush)
    spans: tuple[ReadableSpan, ...] = exporter.get_finished_spans()
    trace_id, root_id = trace_ids(1, "m-1")
    assert {span.context.trace_id for span in spans if span.context} == {trace_id}
    names = sorted(span.name for span in spans)
    assert names == ["conversion", "deliver conversion", "deliver state", "event conversion", "event state", "rewrite"]
    (root,) = [span for span in spans if span.parent is None]
    assert (root.name, root.context and root.context.span_id) == ("rewrite", root_id)
    assert {span.parent.span_id for span in spans if span.parent} == {root_id}
    (state,) = [span for span in spans if span.name == "event state"]
    assert state.attributes is not None
    assert state.attributes["shortener.state"] == "CLICKTHRU"
    assert not any("4085550100" in str(span.attributes) or "x.example" in str(span.attributes) for span in spans)
    assert receiver.requests[0].headers["traceparent"] == f"00-{trace_id:032x}-{root_id:016x}-01"


async def test_messages_that_are_not_sampled_have_no_trace_spans_and_no_trace_header(
    service: Service, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer(exporter, ratio=0.5)
    service.use_tracer(tracer)
    tracker = {"url": receiver.url(), "events": ["state"], "format": "json"}
    assert (await client.post("/api/v1/trackers", json=tracker)).status_code == 201
    body = {"to": [f"+1408555{number:04}" for number in range(64)], "body": "hello"}
    messages = (await client.post("/api/v1/rewrite", json=body)).json()["messages"]
    reports = [{"message_id": message["message_id"], "state": "DELIVERED"} for message in messages]
    assert (await client.post("/api/v1/sms/status", json=reports)).json()["accepted"] == 64
    await service.fanout.flush()
    await service.dispatcher.flush()
    await asyncio.to_thread(tracer.flush)
    traced = {str(span.attributes["shortener.message_id"]) for span in exporter.get_finished_spans() if span.attributes}
    assert 0 < len(traced) < 64
    assert len(receiver.requests) == 64
    assert {request.json["message_id"] for request in receiver.requests if "traceparent" in request.headers} == traced


def test_the_error_for_missing_tracing_packages_contains_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["tracing"]
    packages = sorted((one.partition(">")[0] for one in extra), reverse=True)
    install = f"pip install {' '.join(packages)} in the folder"
    assert open_tracer(Settings()) is None
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracingUnavailable, match=install):
        open_tracer(Settings(otlp_endpoint="http://127.0.0.1:4318/v1/traces"))
