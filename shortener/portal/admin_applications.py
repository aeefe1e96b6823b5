"""/portal/admin/applications: the page with all applications of the installation. An admin creates, renames, disables and enables
them.

The credentials of a new application are shown once, in the response to the form. If the same form is sent again, it creates no
second application (`repeats.py`).
"""
# Tested by tests/portal/test_admin_applications.py

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.accounts.administration import lock_application
from shortener.accounts.audited_accounts import create_application, update_application
from shortener.accounts.credentials import Credentials
from shortener.accounts.directory import Application
from shortener.accounts.own_hosts import OwnHosts
from shortener.delivery.dns_warnings import new_domain_warnings
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.portal.destructive_actions import Question, ask, is_confirmed
from shortener.portal.form_versions import FormChanged, check_version, version_of
from shortener.portal.listing import download_short_list
from shortener.portal.operators import Role
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.repeats import FormRepeated, new_form_id, perform_once
from shortener.storage.types import to_iso

PATH = "/portal/admin/applications"
MAX_COMPANY_ID = 2**31 - 1
_CSV_COLUMNS = ("application_id", "name", "enabled", "company_id", "domain", "gateway", "created_at")


async def index(visit: Visit) -> Response:
    """Return the page that lists all applications and has a form that creates one. For the CSV path, return the applications as
    CSV."""
    if visit.is_csv:
        return await download_short_list(
            visit, "applications", _CSV_COLUMNS, [_csv_row(one) for one in visit.service.directory.applications()]
        )
    return _page(visit)


def _csv_row(application: Application) -> dict[str, Any]:
    return {
        "application_id": application.id,
        "name": application.name,
        "enabled": not application.disabled,
        "company_id": application.company_id,
        "domain": None if application.domain is None else application.domain.base_url + application.domain.path,
        "gateway": None if application.gateway is None else application.gateway.name,
        "created_at": to_iso(application.created_at),
    }


#: Sentences of the page that asks for a confirmation: what happens when an application is disabled.
_EFFECTS = (
    "All its links show a short page from now on, including the links in messages that were already sent.",
    "Requests with its API keys get 401, and its deliveries to trackers wait.",
    "You can enable the application again at any time; its links and keys then work again.",
)


def _page(
    visit: Visit,
    status: int = 200,
    *,
    error: ApiError | None = None,
    created: Credentials | None = None,
    warnings: Iterable[str] = (),
) -> Response:
    return visit.render(
        "admin_applications.html",
        status,
        compress=created is None,
        title="Applications",
        applications=visit.service.directory.applications(),
        version_of=version_of,
        is_creating=visit.form.get("action") == "create",
        error=error,
        created=created,
        warnings=warnings,
        form_id=new_form_id(),
        saved=visit.get("saved") is not None,
    )


async def change(visit: Visit) -> Response:
    """Create or change an application. The form field `action` contains the name of the change."""
    action = visit.form.get("action", "")
    service, created, is_repeat = visit.service, None, False
    try:
        if action == "disable" and not is_confirmed(visit):
            application_id = _number(visit, "application")
            found = None if application_id is None else service.directory.application(application_id)
            if found is None:
                raise _not_found(application_id)
            question = Question(f"Disable the application {found.name}?", _EFFECTS, "Disable", fields=("application",))
            return ask(visit, question, PATH)
        if action == "create":
            service.secret.load()
            created = await service.database.write(perform_once, visit, _create, visit)
        elif action in ("rename", "disable", "enable"):
            try:
                await service.database.write(perform_once, visit, _update, visit, action)
            except FormRepeated:
                is_repeat = True
        else:
            reason = "must be one of create, rename, disable, enable"
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("action", reason)])
    except ApiError as error:
        if error.code is ErrorCode.NOT_FOUND:
            raise
        await service.directory.refresh_if_available()  # Read the accounts again, so that the error page shows the current names.
        return _page(visit, 422, error=error)
    await service.directory.refresh_if_available()
    if created is None:
        # If this form was sent before, somebody may have undone its change in the meantime. The page must then not say that the
        # change is saved.
        return visit.redirect(PATH if is_repeat and _is_undone(visit, action) else f"{PATH}?saved=1")
    domain = _domain(visit)
    return _page(visit, created=created, warnings=await new_domain_warnings(domain) if domain else ())


def _is_undone(visit: Visit, action: str) -> bool:
    """Return whether the application in the form no longer has the state that the action of the form gave it."""
    found = visit.service.directory.application(_number(visit, "application") or 0)
    if found is None:
        return True
    if action == "rename":
        return found.name != visit.form.get("name", "").strip()
    return found.disabled != (action == "disable")


def _not_found(application_id: int | None) -> ApiError:
    which = "without a number" if application_id is None else application_id
    return ApiError(ErrorCode.NOT_FOUND, f"There is no application {which}. Open the page again and choose an application.")


def _domain(visit: Visit) -> str | None:
    return visit.form.get("domain", "").strip() or None


def _create(connection: Connection, visit: Visit) -> Credentials:
    name = visit.form.get("name", "").strip()
    return create_application(
        connection,
        visit.audit_writer,
        name,
        visit.now,
        domain=_domain(visit),
        company_id=_number(visit, "company_id"),
        secret=visit.service.secret,
        own_hosts=OwnHosts.of(visit.service.settings),
    )


def _update(connection: Connection, visit: Visit, action: str) -> None:
    application_id = _number(visit, "application")
    if application_id is None:
        raise _not_found(application_id)
    if action == "rename":
        name = lock_application(connection, application_id).name
        try:
            check_version(visit, {"name": name})
        except FormChanged:
            description = (
                f"The application was renamed to {name} after you opened this page, so nothing was saved. To replace this name, "
                "enter the new name again."
            )
            raise ApiError(ErrorCode.CONFLICT, description) from None
        changes: dict[str, Any] = {"name": visit.form.get("name", "").strip()}
    else:
        changes = {"disabled": action == "disable"}
    update_application(connection, visit.audit_writer, application_id, changes, visit.now)


def _number(visit: Visit, field: str) -> int | None:
    """Return the number in this form field; None if the field is empty. Raise ApiError INVALID_REQUEST if the field contains
    anything else."""
    text = visit.form.get(field, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and int(text) <= MAX_COMPANY_ID):
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(field, f"must be a number up to {MAX_COMPANY_ID}")])
    return int(text)


PAGES = [
    PortalPage(
        PATH,
        index,
        change,
        role=Role.ADMIN,
        csv=True,
        needs_recent_password=True,
        navigation=NavigationItem("Applications", "layers", 10, "installation"),
    ),
]
