"""The endpoints for the domains with which the short links of the caller's application begin."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import AliasChoices, BeforeValidator, Field, ValidationInfo, field_validator
from sqlalchemy import Connection

from shortener.accounts.administration import serialize_domain
from shortener.accounts.audited_accounts import add_domain, remove_domain, update_domain
from shortener.accounts.directory import Application, read_application
from shortener.accounts.own_hosts import OwnHosts
from shortener.delivery.dns_warnings import new_domain_warnings
from shortener.errors import ApiError, ErrorCode
from shortener.urls import canonical_host
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import Text, UrlText, optional_not_null

_TAG = "Domains"


def _empty_to_none(value: Any) -> Any:
    return None if value == "" else value


OptionalUrl = Annotated[Annotated[UrlText, Field(max_length=2048)] | None, BeforeValidator(_empty_to_none)]


class DomainFields(ResponseModel):
    host: str
    application_id: int
    base_url: str = Field(description="Prefix of the short links on the domain: scheme, host and path.")
    path: str = Field(
        description='Path before the codes, such as /ABCDEF or /{sender}. "": no path, the code directly follows the host.'
    )
    fallback_url: str | None
    home_url: str | None
    assetlinks: list[Any] | None
    apple_app_site_association: dict[str, Any] | None
    enabled: bool
    default: bool
    new_links: bool = Field(description="true: new links begin with this domain, unless a rewrite names another domain.")
    warnings: list[str] = Field(
        description="Warnings, for example that phones cannot open links on the domain, or that a placeholder in "
        "fallback_url is not filled in. When a domain is added, the response also warns if the DNS has no address for its "
        "host."
    )


class DomainResponse(ResponseModel):
    """One domain of the application."""

    status: Literal[True] = True
    domain: DomainFields


class DomainsResponse(ResponseModel):
    """The domains of the application, in the order in which they were added."""

    status: Literal[True] = True
    domains: list[DomainFields]


class DomainOptions(RequestModel):
    """The optional fields of a domain, in requests that add or change a domain."""

    default: bool | None = Field(None, description="true: new links begin with this domain. An application has one default domain.")
    fallback_url: OptionalUrl = Field(
        None,
        description="URL to which expired links and unknown codes of the domain redirect. null: the domain has no fallback URL.",
    )
    home_url: OptionalUrl = Field(
        None, description="URL to which the root path / of the domain redirects. null: the root path returns 404."
    )
    assetlinks: list[Any] | None = Field(
        None,
        description="Content of /.well-known/assetlinks.json, which connects Android apps with the domain. null: there is no such "
        "file.",
    )
    apple_app_site_association: dict[str, Any] | None = Field(
        None,
        description="Content of /.well-known/apple-app-site-association, which connects iOS apps with the domain. null: there is "
        "no such file.",
    )


class DomainRequest(DomainOptions):
    """The request body with the domain to add."""

    domain: UrlText = Field(
        min_length=1,
        max_length=300,
        validation_alias=AliasChoices("domain", "base_url", "host"),
        description="https://HOST, optionally with a path before the codes: https://go.brand.example/ABCDEF or "
        "https://go.brand.example/{sender}. If the scheme is missing, the service adds https://.",
    )


class DomainUpdateRequest(DomainOptions):
    """The changes of a domain. A field that is absent keeps its value."""

    default: bool = optional_not_null(description="true: new links begin with this domain. An application has one default domain.")
    enabled: bool = optional_not_null(description="false: links of the domain return 410, and new links use another domain.")
    disabled: bool = optional_not_null(description="true: the same as `enabled: false`. false: the same as `enabled: true`.")
    path: Text | None = Field(
        None,
        max_length=100,
        description="Path before the codes of new links, for example /ABCDEF. Links with an earlier path still work.",
    )

    @field_validator("disabled")
    @classmethod
    def _check_enabled(cls, disabled: bool, info: ValidationInfo) -> bool:
        if disabled == info.data.get("enabled"):
            raise ValueError("must not contradict enabled")
        return disabled


async def index(call: Call[None, None]) -> dict[str, Any]:
    """Return the domains of the application."""
    application = call.service.directory.application(call.application_id)
    domains = application.domains if application else ()
    return {"status": True, "domains": [serialize_domain(domain, application) for domain in domains]}


async def add(call: Call[None, DomainRequest]) -> dict[str, Any]:
    """Add a domain to the application."""
    service, request = call.service, call.body
    url = request.domain if "://" in request.domain else f"https://{request.domain}"
    changes, own_hosts = _changes(request), OwnHosts.of(service.settings)

    def write(connection: Connection) -> tuple[str, Application]:
        host = add_domain(connection, call.audit, call.application_id, url, service.clock(), own_hosts=own_hosts)
        if changes:
            update_domain(connection, call.audit, host, changes, service.clock(), own_hosts=own_hosts)
        return host, read_application(connection, call.application_id)

    host, application = await service.database.write(write)
    await service.directory.refresh_if_available()
    shown = _fields(application, host)
    known = shown["domain"]["warnings"]
    shown["domain"]["warnings"] = list(dict.fromkeys([*await new_domain_warnings(url), *known]))
    return shown


async def show(call: Call[None, None]) -> dict[str, Any]:
    """Return one domain of the application."""
    return await _shown(call, canonical_host(call.path["domain"]))


async def update(call: Call[None, DomainUpdateRequest]) -> dict[str, Any]:
    """Change a domain of the application."""
    service, changes, own_hosts = call.service, _changes(call.body), OwnHosts.of(call.service.settings)
    name, owner = call.path["domain"], call.application_id

    def write(connection: Connection) -> tuple[str, Application]:
        host = update_domain(connection, call.audit, name, changes, service.clock(), own_hosts=own_hosts, application_id=owner)
        return host, read_application(connection, owner)

    host, application = await service.database.write(write)
    await service.directory.refresh_if_available()
    return _fields(application, host)


async def remove(call: Call[None, None]) -> dict[str, Any]:
    """Remove a domain of the application."""
    service, host = call.service, canonical_host(call.path["domain"])
    shown = await _shown(call, host)
    await service.database.write(remove_domain, call.audit, host, service.clock(), application_id=call.application_id)
    await service.directory.refresh_if_available()
    shown["domain"] |= {"default": False, "new_links": False}
    return shown


def _changes(request: DomainOptions) -> dict[str, Any]:
    """Return the fields of the request as the argument `changes` of `update_domain`."""
    changes: dict[str, Any] = {}
    for name in request.model_fields_set - {"domain"}:
        value = getattr(request, name)
        if name in ("assetlinks", "apple_app_site_association"):
            changes[name] = None if value is None else orjson.dumps(value).decode()
        elif name == "enabled":
            changes["disabled"] = not value
        else:
            changes[name] = value
    return changes


async def _shown(call: Call[Any, Any], host: str) -> dict[str, Any]:
    directory = call.service.directory
    await directory.refresh()
    return _fields(directory.application(call.application_id), host)


def _fields(application: Application | None, host: str) -> dict[str, Any]:
    """Return the fields of the response about one domain. Raise ApiError NOT_FOUND if the application does not have this
    domain."""
    domains, wanted = application.domains if application else (), canonical_host(host)
    found = next((domain for domain in domains if canonical_host(domain.host) == wanted), None)
    if found is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no domain {host}.")
    return {"status": True, "domain": serialize_domain(found, application)}


_PATH = "/api/v1/domains"

ENDPOINTS = [
    Endpoint("GET", _PATH, index, "List own domains", _TAG, permission="admin", response=DomainsResponse),
    Endpoint(
        "POST",
        _PATH,
        add,
        "Add an own domain",
        _TAG,
        permission="admin",
        body=DomainRequest,
        response=DomainResponse,
        status=201,
        errors=(ErrorCode.CONFLICT,),
        description=(
            "New links begin with the default domain. If it is disabled or there is none, they begin with the first enabled "
            "domain. A domain that was removed can be added again."
        ),
    ),
    Endpoint("GET", f"{_PATH}/{{domain}}", show, "Show an own domain", _TAG, permission="admin", response=DomainResponse),
    Endpoint(
        "PATCH",
        f"{_PATH}/{{domain}}",
        update,
        "Change an own domain",
        _TAG,
        permission="admin",
        body=DomainUpdateRequest,
        response=DomainResponse,
        description="Changes a domain on every node within a second. If no enabled domain is left, a rewrite fails with "
        "`NO_USABLE_DOMAIN` unless the application has `allow_shared_host`.",
    ),
    Endpoint(
        "DELETE",
        f"{_PATH}/{{domain}}",
        remove,
        "Remove an own domain",
        _TAG,
        permission="admin",
        response=DomainResponse,
        description=(
            "Removes a domain: no new links use it, and it is no longer listed. Links that were already sent work until they "
            "expire. The application can add the domain again; another application cannot."
        ),
    ),
]
