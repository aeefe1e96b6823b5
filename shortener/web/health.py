"""What orchestrators and Prometheus ask: is the process alive, is it ready, what has it done.

`/healthz` answers as long as requests are answered at all; it looks at nothing, so that a database that is away never has a
healthy process restarted. `/readyz` looks at everything that a request may need, each with a time limit, and answers 503 when any
of it is missing, and from the beginning of a shutdown, so that a load balancer turns elsewhere. `/metrics` reads numbers in memory.
None of them tells more than names and states: anybody may ask.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from starlette.responses import Response

from shortener.errors import StoreUnavailable
from shortener.store.migrate import version_of
from shortener.store.migrations import HEAD
from shortener.web.endpoint import Answer, Call, Caller, Endpoint, json_response

if TYPE_CHECKING:
    from shortener.service import Service

PATIENCE = 1.0  # seconds that a dependency may take to answer

State = Literal["ok", "failed"]


class Health(Answer):
    status: Literal["ok"] = "ok"


class Checks(Answer):
    process: State = Field(description="Started, and not shutting down.")
    database: State = Field(description=f"Answered within {PATIENCE:g} s.")
    schema_: State = Field(alias="schema", description="The one that this version needs, or a newer one.")
    jobs: State = Field(description="Every background job is at work.")


class Readiness(Answer):
    status: Literal["ready", "not ready"]
    checks: Checks


async def healthz(call: Call[None, None]) -> Health:
    return Health()


async def readyz(call: Call[None, None]) -> Response:
    readiness = await _readiness(call.service)
    return json_response(readiness, 200 if readiness.status == "ready" else 503)


async def metrics(call: Call[None, None]) -> Response:
    content, content_type = call.service.metrics.text(call.request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})


async def _readiness(service: Service) -> Readiness:
    database, version = True, None
    try:
        version = await asyncio.wait_for(service.database.read(version_of), PATIENCE)
    except (StoreUnavailable, TimeoutError):
        database = False
    met = {
        "process": service.ready,
        "database": database,
        # A newer schema is a roll-out under way: the nodes that are still of this version go on.
        "schema": version is not None and version >= HEAD,
        "jobs": service.jobs.running,
    }
    checks = Checks.model_validate({name: "ok" if fine else "failed" for name, fine in met.items()})
    return Readiness(status="ready" if all(met.values()) else "not ready", checks=checks)


_TAG = "Operation"

ENDPOINTS = [
    Endpoint(
        "GET",
        "/healthz",
        healthz,
        "Is the process alive",
        _TAG,
        Caller.ANYONE,
        answer=Health,
        description="Looks at nothing else: restart the process when this does not answer.",
    ),
    Endpoint(
        "GET",
        "/readyz",
        readyz,
        "May requests be sent here",
        _TAG,
        Caller.ANYONE,
        answer=Readiness,
        also={503: Readiness},
        description="503 while anything that requests depend on is missing, and from the beginning of a shutdown.",
    ),
    Endpoint(
        "GET",
        "/metrics",
        metrics,
        "What the process has done",
        _TAG,
        Caller.ANYONE,
        media_type="text/plain",
        description="For Prometheus: numbers since this process began, read from its memory.",
    ),
]
