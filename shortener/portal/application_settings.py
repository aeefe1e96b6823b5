"""/portal/{app}/settings: the page with the settings of an application. The page also offers a what-if, which shows how many
stored hits would get another verdict with other click rules.

`GROUPS` defines the groups of settings in the form. A test fails if a setting of `ApplicationSettings` is in no group. Only
operators with the role manager who entered the password within the last ten minutes can change settings. Each change is in the
audit log.

The what-if classifies the hits of the last days again with the values in the form. It does this in transactions that are rolled
back, so it stores nothing.
"""
# Tested by tests/portal/test_application_settings.py

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, get_args

from pydantic.fields import FieldInfo
from sqlalchemy import Connection
from starlette.responses import Response

from shortener.accounts.administration import lock_application
from shortener.accounts.audited_accounts import update_application
from shortener.accounts.own_hosts import OwnHosts
from shortener.accounts.settings import ApplicationSettings, from_stored
from shortener.clicks.verdicts.reclassify import ReclassifyResult
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.gateways.store import gateway_name, select_gateway
from shortener.model import record
from shortener.portal.form_versions import FIELD as VERSION
from shortener.portal.form_versions import FormChanged, FormValues, check_version, version_of
from shortener.portal.operators import Role
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.repeats import FormRepeated, perform_once
from shortener.web.validation import validate

#: The settings that the page shows: their groups, and in each group the name and the label of each setting.
GROUPS: Mapping[str, Mapping[str, str]] = {
    "Links": {
        "track": "Links that are replaced",
        "link_ttl_days": "Longest lifetime of a link, in days",
        "fallback_url": "Expired links lead to",
        "click_id_param": "Query parameter with the click id",
        "extra_schemes": "Schemes of links that open an app",
        "strict_destinations": "Reject destinations with unknown placeholders",
        "allow_shared_host": "Allow the shared host",
    },
    "What counts as a click": {
        "confirm_clicks": "Confirmation page",
        "min_seconds_after_sent": "Seconds after SENT",
        "min_seconds_after_delivered": "Seconds after DELIVERED",
        "suspect_before_sent": "Suspect hits before SENT",
        "max_recipients_per_address_minute": "Recipients per IP address and minute",
        "all_links_within_second": "Suspect hits if one address opens all links within a second",
        "retract_clicks": "Retract clicks",
    },
    "Events": {"click_events": "Click events", "click_conversion": "Clicks as conversion events"},
    "Senders and privacy": {"sender_rules": "Rules for sender ids", "ip_privacy": "Addresses of recipients"},
}
#: The settings that have a fixed list of values, with the label of each value. The empty value means that the setting is not set.
CHOICES: Mapping[str, Mapping[str, str]] = {
    "track": {
        "directives": "Only URLs in #track or #trackurl",
        "first_url": "The first URL of the message",
        "all_urls": "All URLs of the message",
    },
    "confirm_clicks": {
        "off": "Never",
        "suspicious": "For hits that probably come from a program",
        "always": "For every hit",
    },
    "click_events": {"first": "The first click on each link", "every": "Every click"},
    "click_conversion": {
        "scg": "To trackers of the format scg",
        "all": "To all trackers of conversion events",
        "off": "To no tracker",
    },
    "sender_rules": {"warn": "Accept the message, with a warning", "reject": "Reject the message"},
    "ip_privacy": {
        "": "As the installation",
        "full": "Store complete addresses",
        "short": "Store shortened addresses",
        "none": "Store no addresses",
    },
}
#: Texts that the form shows for these settings instead of their descriptions. The descriptions explain values of the API, which
#: the form does not show.
_HINTS: Mapping[str, str] = {
    "track": "Which URLs become short links, if a request does not choose.",
    "confirm_clicks": "When recipients see a page with one button before the destination. Only a press of the button counts as a "
    "click.",
    "click_events": "Which clicks are sent to trackers. Links that were created with the value Every click still send every click.",
    "click_conversion": "The first click on a message is also sent as a conversion event (action clickthru). The trackers must "
    "subscribe to conversion events. Statistics do not count it as a conversion.",
    "sender_rules": "What happens to a message if carriers would reject its sender id: because of the format of the sender id, or "
    "because of a rule of the recipient's country.",
    "ip_privacy": "How much of a recipient's IP address is stored. If the setting of the installation stores less, that setting "
    "applies.",
}
#: The settings whose new values can be tested with the what-if.
VERDICT_FIELDS = frozenset(GROUPS["What counts as a click"]) - {"confirm_clicks"}
#: The periods that the what-if offers, in days before now, with their labels. Only hits in the period are classified again.
WHAT_IF_DAYS = {"1": "the last day", "7": "the last 7 days"}
MAX_WHAT_IF_SECONDS = 20.0


@record
class SettingField:
    """One setting in the form. `kind` is the kind of its input field: checkbox, choice, number or text. `value` is the text in
    the field; a checkbox is checked if `value` is not empty. For a choice, `choices` are the permitted values with their labels.
    The first of these values is empty if the setting may be absent."""

    name: str
    label: str
    hint: str
    kind: str
    value: str
    choices: Mapping[str, str]


@record
class WhatIf:
    """The result of a what-if: the changes that the new settings would make to the stored hits of the last `days` days."""

    days: int
    result: ReclassifyResult


async def settings_page(visit: Visit) -> Response:
    """Show the form with the settings of the application."""
    return _page(visit)


def _page(visit: Visit, status: int = 200, *, error: ApiError | None = None, what_if: WhatIf | None = None) -> Response:
    application = visit.one_application
    gateway = application.gateway.name if application.gateway else "none"
    form = visit.form if error is not None or what_if is not None else None
    version = version_of(_values_of(application.settings, gateway)) if form is None else form.get(VERSION, "")
    if isinstance(error, FormChanged):
        form, version = error.values, error.version
    return visit.render(
        "settings.html",
        status,
        title="Settings",
        groups={group: [_field(visit, name, label, form) for name, label in fields.items()] for group, fields in GROUPS.items()},
        gateway=(form or {}).get("gateway", gateway),
        version=version,
        gateways=[gateway.name for gateway in application.gateways],
        what_if_days=WHAT_IF_DAYS,
        chosen_days=visit.form.get("days", "7"),
        may_change=visit.may(Role.MANAGER),
        saved=visit.get("saved") is not None,
        error=error,
        what_if=what_if,
    )


def _field(visit: Visit, name: str, label: str, form: Mapping[str, str] | None) -> SettingField:
    field = ApplicationSettings.model_fields[name]
    value = _form_value(visit.one_application.settings, name)
    text = form.get(name, "") if form is not None else value if isinstance(value, str) else "on" if value else ""
    choices = CHOICES.get(name, {})
    is_number = any(part in (int, float) for part in (field.annotation, *get_args(field.annotation)))
    kind = "checkbox" if field.annotation is bool else "choice" if choices else "number" if is_number else "text"
    return SettingField(name, label, _HINTS.get(name) or _hint(field), kind, text, choices)


def _form_value(settings: ApplicationSettings, name: str) -> str | bool:
    """Return the text that the form field of a setting contains. For a checkbox, return whether it is checked."""
    value = getattr(settings, name)
    if isinstance(value, bool):
        return value
    if isinstance(value, tuple):
        return " ".join(value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _values_of(settings: ApplicationSettings, gateway: str) -> FormValues:
    """Return the values that the form shows. The version of the form is computed from these values (form_versions.py)."""
    return {name: _form_value(settings, name) for fields in GROUPS.values() for name in fields} | {"gateway": gateway}


def _hint(field: FieldInfo) -> str:
    """Return the explanation that the form shows for a setting."""
    text = (field.description or "").replace("`", "")
    for word, shown in (("null: ", "Empty: "), ("true: ", "On: "), ("false: ", "Off: ")):
        text = text.replace(word, shown)
    return text


async def save(visit: Visit) -> Response:
    """Save the settings in the form. If the what-if was requested, only show how many stored hits would get another verdict with
    these settings."""
    try:
        changes = _read_form(visit)
        if visit.form.get("action") == "try":
            return _page(visit, what_if=await _try(visit, changes))
        await visit.service.database.write(perform_once, visit, _write, visit, changes)
    except FormRepeated:
        await visit.service.directory.refresh_if_available()
        # This form was sent before. If somebody has changed the settings in the meantime, the page must not say that the settings
        # in the form are saved.
        return visit.redirect(visit.link("settings", keep=False, saved=1 if _is_stored(visit, changes) else None))
    except FormChanged as error:
        return _page(visit, 409, error=error)
    except ApiError as error:
        if error.code is not ErrorCode.INVALID_REQUEST:
            raise
        return _page(visit, 422, error=error)
    await visit.service.directory.refresh_if_available()
    return visit.redirect(visit.link("settings", keep=False, saved=1))


def _is_stored(visit: Visit, changes: Mapping[str, Any]) -> bool:
    """Return whether the stored settings equal the values in the form."""
    application = visit.service.directory.application(visit.application_id) or visit.one_application
    gateway = application.gateway.name if application.gateway else "none"
    return _validated(application.settings, changes) == application.settings and visit.form.get("gateway", "none") == gateway


def _read_form(visit: Visit) -> dict[str, Any]:
    """Return the settings in the form. The value of an empty field is None. The values are not validated yet."""
    changes: dict[str, Any] = {}
    for name in (name for fields in GROUPS.values() for name in fields):
        field, text = ApplicationSettings.model_fields[name], visit.form.get(name, "").strip()
        if field.annotation is bool:
            changes[name] = bool(text)
        elif name == "extra_schemes":
            changes[name] = text
        else:
            changes[name] = text or None
    return changes


def _write(connection: Connection, visit: Visit, changes: dict[str, Any]) -> None:
    application, service = visit.one_application, visit.service
    row = lock_application(connection, application.id)
    settings, gateway = from_stored(row.settings), gateway_name(connection, row.gateway_id)
    _validated(settings, changes)
    check_version(visit, _values_of(settings, gateway))
    update_application(connection, visit.audit_writer, application.id, changes, visit.now, own_hosts=OwnHosts.of(service.settings))
    chosen = visit.form.get("gateway", "none")
    if chosen != gateway:
        is_operator = visit.operator.is_admin
        select_gateway(connection, visit.audit_writer, application.id, chosen, visit.now, is_operator=is_operator)


def _validated(settings: ApplicationSettings, changes: Mapping[str, Any]) -> ApplicationSettings:
    """Apply the changes and return the resulting settings. Raise ApiError INVALID_REQUEST if a value is not valid."""
    return validate(ApplicationSettings, settings.model_dump(exclude_defaults=True) | dict(changes))


async def _try(visit: Visit, changes: Mapping[str, Any]) -> WhatIf:
    """Run the what-if with the changed settings and return its result. Nothing is stored."""
    days = visit.form.get("days", "7")
    if days not in WHAT_IF_DAYS:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("days", f"must be one of {', '.join(WHAT_IF_DAYS)}")])
    settings = _validated(visit.one_application.settings, {name: changes[name] for name in VERDICT_FIELDS})
    since, application_id = visit.now - timedelta(days=int(days)), visit.application_id
    try:
        async with asyncio.timeout(MAX_WHAT_IF_SECONDS):
            result = await visit.service.reclassifier.run(
                since, visit.now, visit.now, applications=[application_id], settings={application_id: settings}, dry_run=True
            )
    except TimeoutError:
        reason = f"has more hits than can be examined in {MAX_WHAT_IF_SECONDS:.0f} seconds; choose a shorter period"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("days", reason)]) from None
    return WhatIf(int(days), result)


PAGES = [
    PortalPage(
        "/portal/{app}/settings",
        settings_page,
        save,
        post_role=Role.MANAGER,
        all_applications=False,
        navigation=NavigationItem("Settings", "settings", 30, "setup"),
        needs_recent_password=True,
    ),
]
