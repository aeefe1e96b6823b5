"""/portal/{app}/domains: the pages for the domains with which the short URLs of an application begin. Operators of every role can
see them. Only operators with the role manager who entered the password within the last ten minutes can change them. Each change
is in the audit log.
"""
# Tested by tests/portal/test_domains.py

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.accounts.administration import lock_domain, serialize_domain
from shortener.accounts.audited_accounts import add_domain, remove_domain, update_domain
from shortener.accounts.directory import Application, Domain
from shortener.accounts.own_hosts import OwnHosts, unreachable_host_warnings
from shortener.delivery.dns_warnings import has_address
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.portal.destructive_actions import Question, ask, is_confirmed
from shortener.portal.form_versions import FIELD as VERSION
from shortener.portal.form_versions import FormChanged, check_version, version_of
from shortener.portal.listing import download_short_list
from shortener.portal.operators import Role
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.repeats import FormRepeated, is_repeated, perform_once
from shortener.urls import canonical_host, host_of_domain

MAX_URL_CHARACTERS = 2048
_CSV_COLUMNS = ("host", "base_url", "enabled", "default", "new_links", "fallback_url", "home_url")
#: The form fields that contain JSON: the Python type that the parsed JSON must have, and the name of this type in error texts.
_ASSOCIATIONS = {"assetlinks": (list, "a JSON list"), "apple_app_site_association": (dict, "a JSON object")}


async def index(visit: Visit) -> Response:
    """Return the page that lists the domains and has a form that adds one. For the CSV path, return the domains as CSV."""
    if visit.is_csv:
        application = visit.one_application
        rows = [serialize_domain(domain, application) for domain in application.domains]
        return await download_short_list(visit, "domains", _CSV_COLUMNS, rows)
    return _list_page(visit)


def _list_page(visit: Visit, status: int = 200, error: ApiError | None = None) -> Response:
    application = visit.one_application
    return visit.render(
        "domains.html",
        status,
        title="Domains",
        domains=[serialize_domain(domain, application) for domain in application.domains],
        shared_host=visit.service.settings.base_url,
        uses_shared_host=application.domain is None and application.may_use_shared_host,
        has_no_usable_domain=application.domain is None and not application.may_use_shared_host,
        may_change=visit.may(Role.MANAGER),
        is_removed=visit.get("removed") is not None,
        error=error,
    )


async def add(visit: Visit) -> Response:
    """Add the domain in the form to the application."""
    text = visit.form.get("domain", "").strip()
    url = text if "://" in text else f"https://{text}"
    service, own_hosts = visit.service, OwnHosts.of(visit.service.settings)
    try:
        host = await service.database.write(
            perform_once, visit, add_domain, visit.audit_writer, visit.application_id, url, visit.now, own_hosts=own_hosts
        )
    except FormRepeated:
        # If the form was sent twice at the same time, `visit` contains the accounts as they were before the domain was added.
        await service.directory.refresh_if_available()
        host = host_of_domain(url)
        if _find_host(_current_application(visit), host) is None:  # somebody has removed the domain after it was added
            raise
    except ApiError as error:
        return _list_page(visit, 422, error)
    await service.directory.refresh_if_available()
    return visit.redirect(visit.link(f"domains/{host}", keep=False, added=1, check=1))


async def show(visit: Visit) -> Response:
    """Show one domain, with a form that changes it. If the query has `check`, also show whether the DNS has an address for its
    host."""
    host = _find(visit).host
    is_checked = visit.get("check") is not None and not unreachable_host_warnings(host)
    has_dns_address = await has_address(host) if is_checked else None
    return _domain_page(visit, has_address=has_dns_address)


def _domain_page(visit: Visit, status: int = 200, error: ApiError | None = None, *, has_address: bool | None = None) -> Response:
    domain = _find(visit)
    shown, stored = serialize_domain(domain, visit.application), _values_of(domain)
    fields, version = stored, version_of(stored)
    if isinstance(error, FormChanged):
        fields, version = {**stored, **error.values}, error.version
    elif error is not None:
        fields, version = {**stored, **visit.form}, visit.form.get(VERSION, "")
    return visit.render(
        "domain.html",
        status,
        title=shown["host"],
        domain=shown,
        fields=fields,
        version=version,
        may_change=visit.may(Role.MANAGER),
        saved=visit.get("saved") is not None,
        is_new=visit.get("added") is not None,
        has_address=has_address,
        error=error,
    )


def _values_of(domain: Any) -> dict[str, str]:
    """Return the values that the form of a domain shows. `domain` is a Domain, or its row in the table `domains`."""
    values = {name: getattr(domain, name) or "" for name in ("path", "fallback_url", "home_url")}
    for name in _ASSOCIATIONS:
        text = getattr(domain, name)
        values[name] = "" if text is None else json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return values


def _find(visit: Visit) -> Domain:
    """Return the domain whose host is in the URL path. Raise ApiError NOT_FOUND if there is none."""
    found = _find_host(visit.one_application, str(visit.path["host"]))
    if found is None:
        raise ApiError(ErrorCode.NOT_FOUND)
    return found


def _find_host(application: Application, host: str) -> Domain | None:
    wanted = canonical_host(host)
    return next((one for one in application.domains if canonical_host(one.host) == wanted), None)


def _current_application(visit: Visit) -> Application:
    """Return the application of the page from the newest state of the accounts. `visit.application` is from the beginning of the
    request."""
    return visit.service.directory.application(visit.application_id) or visit.one_application


async def change(visit: Visit) -> Response:
    """Change or remove one domain. The form field `action` contains the name of the change."""
    name = visit.form.get("action", "")
    action = _ACTIONS.get(name)
    if action is None:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("action", f"must be one of {', '.join(_ACTIONS)}")])
    removed = visit.link("domains", keep=False, removed=1)
    if name == "remove" and await is_repeated(visit) and _find_host(visit.one_application, str(visit.path["host"])) is None:
        return visit.redirect(removed)
    domain = _find(visit)
    if name in _EFFECTS and not is_confirmed(visit):
        icon = "trash-2" if name == "remove" else "ban"
        question = Question(f"{name.capitalize()} the domain {domain.host}?", _EFFECTS[name], name.capitalize(), icon)
        return ask(visit, question, visit.link(f"domains/{domain.host}", keep=False))
    is_repeat = False
    try:
        await visit.service.database.write(perform_once, visit, action, visit, domain)
    except FormRepeated:
        is_repeat = True
    except FormChanged as error:
        return _domain_page(visit, 409, error)
    except ApiError as error:
        return _domain_page(visit, 422, error)
    await visit.service.directory.refresh_if_available()
    present = _find_host(_current_application(visit), domain.host)
    if present is None:
        return visit.redirect(removed)
    # If this form was sent before, somebody may have undone its change since then. In this case the page must not say that the
    # change is saved.
    is_undone = is_repeat and (name == "remove" or (name in ("enable", "disable") and present.disabled != (name == "disable")))
    return visit.redirect(visit.link(f"domains/{domain.host}", keep=False, saved=None if is_undone else 1))


def _save(connection: Connection, visit: Visit, domain: Domain) -> None:
    changes: dict[str, Any] = {"path": visit.form.get("path", "").strip()}
    for name in ("fallback_url", "home_url"):
        changes[name] = visit.form.get(name, "").strip() or None
        if changes[name] is not None and len(changes[name]) > MAX_URL_CHARACTERS:
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(name, f"must have at most {MAX_URL_CHARACTERS} characters")])
    for name in _ASSOCIATIONS:
        changes[name] = _parse_association(name, visit.form.get(name, "").strip())
    check_version(visit, _values_of(lock_domain(connection, domain.host, visit.application_id)))
    _update(connection, visit, domain, changes)


def _parse_association(name: str, text: str) -> str | None:
    """Return the JSON in a form field, without unnecessary spaces. Return None if the field is empty. Raise ApiError
    INVALID_REQUEST if the text is not JSON or has the wrong type."""
    if not text:
        return None
    kind, described = _ASSOCIATIONS[name]
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, kind):
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(name, f"must be {described}")])
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def _make_default(connection: Connection, visit: Visit, domain: Domain) -> None:
    _update(connection, visit, domain, {"default": True})


def _enable(connection: Connection, visit: Visit, domain: Domain) -> None:
    _update(connection, visit, domain, {"disabled": False})


def _disable(connection: Connection, visit: Visit, domain: Domain) -> None:
    _update(connection, visit, domain, {"disabled": True})


def _update(connection: Connection, visit: Visit, domain: Domain, changes: Mapping[str, Any]) -> None:
    update_domain(
        connection,
        visit.audit_writer,
        domain.host,
        changes,
        visit.now,
        own_hosts=OwnHosts.of(visit.service.settings),
        application_id=visit.application_id,
    )


def _remove(connection: Connection, visit: Visit, domain: Domain) -> None:
    remove_domain(connection, visit.audit_writer, domain.host, visit.now, application_id=visit.application_id)


_ACTIONS: dict[str, Callable[[Connection, Visit, Domain], None]] = {
    "save": _save,
    "make_default": _make_default,
    "enable": _enable,
    "disable": _disable,
    "remove": _remove,
}

#: What the actions that must be confirmed change, as sentences for the page that asks.
_EFFECTS = {
    "disable": (
        "All links of this domain show a short page from now on, including the links in messages that were already sent.",
        "New links use another domain. If there is none, every rewrite fails with NO_USABLE_DOMAIN.",
        "You can enable the domain again at any time; its links then work again.",
    ),
    "remove": (
        "New links use another domain. If there is none, every rewrite fails with NO_USABLE_DOMAIN.",
        "Links that were already sent work until they expire, as long as the host leads to this service.",
        "This application can add the domain again; another application cannot.",
    ),
}

PAGES = [
    PortalPage(
        "/portal/{app}/domains",
        index,
        add,
        post_role=Role.MANAGER,
        csv=True,
        all_applications=False,
        navigation=NavigationItem("Domains", "globe", 20, "setup"),
        needs_recent_password=True,
    ),
    PortalPage(
        "/portal/{app}/domains/{host}",
        show,
        change,
        post_role=Role.MANAGER,
        all_applications=False,
        needs_recent_password=True,
    ),
]
