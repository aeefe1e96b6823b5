"""What orchestrators, Prometheus and reverse proxies ask: is the process alive, is it ready, what has it done, is a domain ours.

`/healthz` answers as long as requests are answered at all; it looks at nothing, so that a database that is away never has a
healthy process restarted. `/readyz` looks at everything that a request may need, each with a time limit, and answers 503 when any
of it is missing, and from the beginning of a shutdown, so that a load balancer turns elsewhere. While only the database is missing
and Redis is there, links go on being answered from it, so the node stays ready. `/metrics` reads numbers in memory.
None of them tells more than names and states: anybody may ask, by any Host but an application's own domain. A proxy that gets
certificates on demand asks `/internal/domain-check` before it does, or strangers could have it ask for any name.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pydantic import Field
from starlette.responses import Response

from shortener.errors import ApiError, ErrorCode, StoreUnavailable
from shortener.storage.migrate import version_of
from shortener.storage.migrations import HEAD
from shortener.web.endpoint import Call, Caller, Endpoint, Model, ResponseModel, json_response

if TYPE_CHECKING:
    from shortener.container import Service

PATIENCE = 1.0  # seconds that a dependency may take to answer

State = Literal["ok", "failed"]


class LivenessResponse(ResponseModel):
    status: Literal["ok"] = "ok"


class Checks(ResponseModel):
    process: State = Field(description="Started, and not shutting down.")
    database: State = Field(description=f"Answered within {PATIENCE:g} s.")
    schema_: State = Field(alias="schema", description="The one that this version needs, or a newer one.")
    redis: Literal["ok", "failed", "none"] = Field(description="Answers; it may fail as long as the database is there.")
    jobs: State = Field(description="Every background job is at work.")


class ReadinessResponse(ResponseModel):
    status: Literal["ready", "not ready"]
    checks: Checks


class DomainQuery(Model):
    """Which domain."""

    domain: str = Field(max_length=253, description="A host name, for example go.brand.example.")


class KnownDomain(ResponseModel):
    domain: str


async def healthz(call: Call[None, None]) -> LivenessResponse:
    return LivenessResponse()


async def readyz(call: Call[None, None]) -> Response:
    readiness = await _readiness(call.service)
    return json_response(readiness, 200 if readiness.status == "ready" else 503)


async def domain_check(call: Call[DomainQuery, None]) -> KnownDomain:
    host = call.query.domain.lower().rstrip(".")
    domain = call.service.directory.domain(host)
    if not (domain and not domain.disabled) and host != urlsplit(call.service.settings.base_url).hostname:
        raise ApiError(ErrorCode.NOT_FOUND, "No link of this installation is on this domain.")
    return KnownDomain(domain=host)


async def metrics(call: Call[None, None]) -> Response:
    content, content_type = call.service.metrics.text(call.request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})


async def _readiness(service: Service) -> ReadinessResponse:
    database, version = True, None
    try:
        version = await asyncio.wait_for(service.database.read(version_of), PATIENCE)
    except (StoreUnavailable, TimeoutError):
        database = False
    redis = service.redis is not None and await service.redis.answers()
    # A newer schema is a roll-out under way: the nodes that are still of this version go on.
    schema = version is not None and version >= HEAD
    met = {"process": service.ready, "database": database, "schema": schema, "redis": redis, "jobs": service.jobs.running}
    told: dict[str, str] = {name: "ok" if fine else "failed" for name, fine in met.items()}
    if service.redis is None:
        told["redis"] = "none"
    ready = service.ready and service.jobs.running and (schema if database else redis)
    return ReadinessResponse(status="ready" if ready else "not ready", checks=Checks.model_validate(told))


_TAG = "Operation"

ENDPOINTS = [
    Endpoint(
        "GET",
        "/healthz",
        healthz,
        "Is the process alive",
        _TAG,
        Caller.ANYONE,
        response=LivenessResponse,
        description="Looks at nothing else: restart the process when this does not answer.",
    ),
    Endpoint(
        "GET",
        "/readyz",
        readyz,
        "May requests be sent here",
        _TAG,
        Caller.ANYONE,
        response=ReadinessResponse,
        also={503: ReadinessResponse},
        description="503 while anything that requests depend on is missing, and from the beginning of a shutdown. "
        "A node whose database is away stays ready as long as Redis answers for its links.",
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
    Endpoint(
        "GET",
        "/internal/domain-check",
        domain_check,
        "May a certificate be asked for",
        _TAG,
        Caller.ANYONE,
        query=DomainQuery,
        response=KnownDomain,
        errors=(ErrorCode.NOT_FOUND,),
        description="For a reverse proxy with certificates on demand (Caddy's `ask`): 200 for a domain of an application that is "
        "not disabled, and for the host of BASE_URL. Keep /internal/ inside.",
    ),
]
