"""The endpoints for orchestrators, Prometheus and reverse proxies: liveness, readiness, metrics and the domain check.

`/healthz` checks nothing, so that an unavailable database never causes the restart of a healthy process. `/readyz` checks every
dependency with a time limit. It responds with 503 if a required dependency is unavailable, and after a shutdown has begun. A load
balancer then uses other nodes. There is one exception: if the database does not respond or rejects writes, the node stays ready
as long as Redis accepts writes, because the node can redirect links from the cache. `/metrics` returns numbers that the process
has in memory. `/internal/domain-check` says whether a domain belongs to this installation. A reverse proxy that requests
certificates on demand calls it first. Without this check, a stranger could make the proxy request certificates for any name.

None of these endpoints requires a credential. Their responses contain only names, states and numbers. They respond on the host of
BASE_URL, on localhost and on IP addresses. The domain check responds to every Host header except an application's own domain,
because a proxy calls it by an internal host name.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pydantic import Field
from starlette.responses import Response

from shortener.errors import ApiError, ErrorCode, StoreUnavailable
from shortener.storage.integrity import try_write
from shortener.storage.migrate import version_of
from shortener.storage.migrations import HEAD
from shortener.web.callers import Caller
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel, json_response

if TYPE_CHECKING:
    from shortener.container import Service

CHECK_TIMEOUT_SECONDS = 1.0  # time limit for the response of the database

CheckState = Literal["ok", "failed"]


class LivenessResponse(ResponseModel):
    """The response of a process that is alive."""

    status: Literal["ok"] = "ok"


class ReadinessChecks(ResponseModel):
    """The state of each dependency that /readyz checks."""

    process: CheckState = Field(description="ok: the process has started and is not shutting down.")
    database: CheckState = Field(description=f"ok: the database responded within {CHECK_TIMEOUT_SECONDS:g} s.")
    writes: CheckState = Field(
        description="ok: the database accepts writes. failed: hits cannot be stored, or a write failed and a test write "
        "after it failed too. Possible causes: the disk is full, or the file of the database was deleted or replaced."
    )
    schema_: CheckState = Field(alias="schema", description="ok: the database schema is as new as this version requires, or newer.")
    redis: Literal["ok", "failed", "none"] = Field(
        description="ok: Redis responds and accepts writes. none: not configured. The node stays ready without Redis while the "
        "database accepts writes."
    )
    jobs: CheckState = Field(
        description="ok: every background task is running. failed: a task ended unexpectedly in the last 10 s and was "
        "restarted, or the last run of a job failed. The log and the metric `shortener_task_restarts` contain the name of "
        "the task. The node stays ready while all tasks run."
    )


class ReadinessResponse(ResponseModel):
    """The readiness of the node: whether it accepts requests, and the state of each dependency."""

    status: Literal["ready", "not ready"]
    checks: ReadinessChecks


class DomainQuery(RequestModel):
    """The query parameter with the domain to check."""

    domain: str = Field(max_length=253, description="Host name, for example go.brand.example.")


class DomainCheckResponse(ResponseModel):
    """The response for a domain that belongs to this installation."""

    domain: str


async def healthz(call: Call[None, None]) -> LivenessResponse:
    """Respond that the process is alive, without checking any dependency."""
    return LivenessResponse()


async def readyz(call: Call[None, None]) -> Response:
    """Check every dependency; respond with 503 if the node is not ready."""
    found = await readiness(call.service)
    return json_response(found, 200 if found.status == "ready" else 503)


async def domain_check(call: Call[DomainQuery, None]) -> DomainCheckResponse:
    """Respond with 200 if this installation serves links on the domain, otherwise with 404."""
    host = call.query.domain.lower().rstrip(".")
    directory = call.service.directory
    domain, own = directory.domain(host), urlsplit(call.service.settings.base_url).hostname
    if not (domain and not domain.disabled) and host != own and not directory.is_former_base(host):
        raise ApiError(ErrorCode.NOT_FOUND, "This domain does not belong to this installation, or it is disabled.")
    return DomainCheckResponse(domain=host)


async def metrics(call: Call[None, None]) -> Response:
    """Return all metrics in the format that the Accept header requests."""
    content, content_type = call.service.metrics.text(call.request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})


async def readiness(service: Service) -> ReadinessResponse:
    """Check every dependency of the process."""
    database_ok, version = True, None
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            version = await service.database.read(version_of)
    except (StoreUnavailable, TimeoutError):
        database_ok = False
    writes_ok = database_ok and await _takes_writes(service)
    redis_ok = service.redis is not None and await service.redis.accepts_writes()
    # During an upgrade, the schema can be newer than this version. This version also works with it.
    schema_ok = version is not None and version >= HEAD
    jobs_run = service.jobs.running
    jobs_ok = jobs_run and service.supervisor.is_healthy and not service.jobs.failing
    passed = {
        "process": service.ready,
        "database": database_ok,
        "writes": writes_ok,
        "schema": schema_ok,
        "redis": redis_ok,
        "jobs": jobs_ok,
    }
    checks: dict[str, str] = {name: "ok" if ok else "failed" for name, ok in passed.items()}
    if service.redis is None:
        checks["redis"] = "none"
    ready = service.ready and jobs_run and (schema_ok if writes_ok else redis_ok)
    return ReadinessResponse(status="ready" if ready else "not ready", checks=ReadinessChecks.model_validate(checks))


async def _takes_writes(service: Service) -> bool:
    """Return whether the database accepts writes. After a failed write, write a test row to find out whether writes succeed
    again."""
    if service.recorder.is_failing:
        return False
    if service.database.has_failed_writes:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                await service.database.write(try_write, service.now_ms())
        except (StoreUnavailable, TimeoutError):
            return False
        service.database.writes_succeed()
    return True


_TAG = "Operation"

ENDPOINTS = [
    Endpoint(
        "GET",
        "/healthz",
        healthz,
        "Check that the process is alive",
        _TAG,
        Caller.ANYONE,
        response=LivenessResponse,
        description="Checks no dependency. Restart the process if this call gets no response.",
    ),
    Endpoint(
        "GET",
        "/readyz",
        readyz,
        "Check that the node accepts requests",
        _TAG,
        Caller.ANYONE,
        response=ReadinessResponse,
        other_responses={503: ReadinessResponse},
        description=(
            "Returns 503 while a required dependency is unavailable, and after a shutdown has begun. If the database is "
            "unavailable or rejects writes, a node stays ready while Redis accepts writes, because it redirects links from the "
            "cache."
        ),
    ),
    Endpoint(
        "GET",
        "/metrics",
        metrics,
        "Read the metrics",
        _TAG,
        Caller.ANYONE,
        media_type="text/plain",
        description="Returns the metrics of the process in the text format of Prometheus. All counters begin at 0 when the "
        "process starts.",
    ),
    Endpoint(
        "GET",
        "/internal/domain-check",
        domain_check,
        "Check that a domain belongs to this installation",
        _TAG,
        Caller.ANYONE,
        query=DomainQuery,
        response=DomainCheckResponse,
        errors=(ErrorCode.NOT_FOUND,),
        description=(
            "For a reverse proxy that requests certificates on demand (`ask` in Caddy). Returns 200 for an enabled domain of an "
            "application and for the current and former hosts of BASE_URL, and 404 otherwise. The proxy must not forward requests "
            "for /internal/ from outside."
        ),
    ),
]
