"""/portal/{app}/trackers/new and /portal/{app}/trackers/{id}/edit: the pages that create, change and delete trackers.

The preview shows the requests that the tracker in the form would get for the newest real events. The preview sends nothing and
stores nothing. A new signing secret is shown once, in the response to the form. If the same form is sent again, it creates
nothing (`repeats.py`). A tracker and the audit row about its change are stored in one transaction.
"""
# Tested by tests/portal/test_tracker_editor.py

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.delivery.conversion_filter import DISPOSITIONS, make_filter
from shortener.delivery.deliveries import MAX_COUNT
from shortener.delivery.example_requests import (
    ExampleRequest,
    example_requests,
    example_secret,
    example_target,
    indented,
    sample_request,
)
from shortener.delivery.fanout_queries import conversion_outcomes
from shortener.delivery.formats import FORMATS
from shortener.delivery.tracker_queries import require_tracker
from shortener.delivery.trackers import DEFAULT_SECRET_OVERLAP_SECONDS, Tracker, TrackerSaveResult, tracker_from_row
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import parse_counted_id
from shortener.model import EVENT_NAMES, Topic
from shortener.plurals import counted
from shortener.portal.destructive_actions import Question, ask, is_cancelled, is_confirmed
from shortener.portal.form_versions import FIELD as VERSION
from shortener.portal.form_versions import FormChanged, FormValues, check_version, version_of
from shortener.portal.operators import Role
from shortener.portal.page import PortalPage, Visit
from shortener.portal.repeats import new_form_id, perform_once
from shortener.reporting.event_list import EventFilter, list_events
from shortener.urls import host_of
from shortener.web.tracker_requests import TrackerCreateRequest, TrackerUpdateRequest
from shortener.web.validation import validate

PREVIEWED = 3  # The maximum number of events whose requests a preview shows.
RECENT = timedelta(days=7)
#: The label and the description of each kind of event in the form of a tracker.
EVENTS = {
    "state": ("Message states", "SENT, DELIVERED, READ, FAILED, EXPIRED, or CLICKTHRU for the first click on a message"),
    "click": ("Clicks", "the first click on each link, or every click"),
    "late_click": ("Late clicks", "a click on a link that has expired"),
    "conversion": ("Conversions", "a conversion is reported or changes"),
    "delivery": ("Delivery reports", "a delivery report of the carrier"),
    "operations": ("Operations", "a tracker is disabled, a delivery is dead, a key expires"),
}
METHODS = ("POST", "GET")
#: The labels of the optional limits in the form of a tracker, by field name.
LIMITS = {
    "max_attempts": "Attempts",
    "timeout": "Seconds for one attempt",
    "concurrency": "Attempts at a time",
    "max_per_second": "Attempts per second",
}
#: The dispositions by which a tracker can select conversions. Each has a label and a description.
DISPOSITION_TEXTS = {
    "positive": ("Positive", "approved, paid, confirmed, the reply START"),
    "negative": ("Negative", "rejected, refunded, cancelled, the reply STOP"),
    "none": ("Undecided", "pending conversions, replies with any other text, clicks that are sent as conversions"),
}
#: The labels of the formats in which the bodies of requests can be sent.
FORMAT_LABELS = {
    "json": "JSON, with fields of your choice",
    "scg": "SCG-Message",
    "xoxzo": "Xoxzo",
    "infobip": "Infobip",
}
_TEXT_FIELDS = ("url", "name", "method", "format", "fields", "enabled", "with_suspected", "conversion_actions", *LIMITS)
#: The codes of errors after which the page shows the form again, with the error and the entries of the operator.
_ERRORS_OF_THE_FORM = frozenset(
    {
        ErrorCode.INVALID_REQUEST,
        ErrorCode.UNKNOWN_PLACEHOLDER,
        ErrorCode.INVALID_TRACKER_URL,
        ErrorCode.FORBIDDEN_TARGET,
        ErrorCode.CONFLICT,
    }
)


async def new(visit: Visit) -> Response:
    """Show the form for a new tracker."""
    return await _page(visit, None)


async def create(visit: Visit) -> Response:
    """Create a tracker, or show a preview of its requests."""
    try:
        request = validate(TrackerCreateRequest, _read_form(visit))
        if visit.form.get("action") == "preview":
            return await _page(visit, None, previews=await _preview(visit, request))
        transaction = await visit.service.trackers.prepare_creation(visit.audit_writer, visit.application_id, request.to_tracker())
        saved = await visit.service.database.write(perform_once, visit, transaction)
    except ApiError as error:
        if error.code not in _ERRORS_OF_THE_FORM:
            raise
        return await _page(visit, None, 422, error=error)
    return await _page(visit, saved.tracker, saved=saved)


async def edit(visit: Visit) -> Response:
    """Show the form of a tracker."""
    return await _page(visit, await find_tracker(visit))


async def change(visit: Visit) -> Response:
    """Change or delete a tracker, replace its secret, or show a preview. The form field `action` contains the name of the
    change."""
    tracker, action = await find_tracker(visit), visit.form.get("action", "")
    service, database, audit = visit.service, visit.service.database, visit.audit_writer
    if action in _QUESTIONS and is_cancelled(visit):
        return await _page(visit, tracker, keeps_entries="url" in visit.form)
    if action in _QUESTIONS and not is_confirmed(visit):
        return await _QUESTIONS[action](visit, tracker)
    saved = None
    try:
        if action == "preview":
            request = validate(TrackerCreateRequest, _read_form(visit))
            return await _page(visit, tracker, previews=await _preview(visit, request))
        if action == "delete":
            await service.trackers.delete(audit, tracker.id, visit.application_id)
        elif action == "rotate":
            transaction = await service.trackers.prepare_update(audit, tracker.id, {"rotate_secret": True}, visit.application_id)
            saved = await database.write(perform_once, visit, transaction)
        elif action == "save":
            values = _read_form(visit)
            if not values["enabled"] and not tracker.enabled:
                # The form always contains the field `enabled`. If the tracker is already disabled, an unchecked box does not mean
                # that the operator has now decided to disable it.
                del values["enabled"]
            given = validate(TrackerUpdateRequest, {**dict.fromkeys((*LIMITS, "fields")), **values})
            transaction = await service.trackers.prepare_update(audit, tracker.id, given.to_changes(), visit.application_id)

            def save(connection: Connection) -> None:
                row = require_tracker(connection, tracker.id, visit.application_id, lock=True)
                check_version(visit, _values_of(tracker_from_row(row)))
                transaction(connection)

            await database.write(save)
        else:
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("action", "must be one of save, preview, rotate, delete")])
    except FormChanged as error:
        return await _page(visit, tracker, 409, error=error)
    except ApiError as error:
        if error.code not in _ERRORS_OF_THE_FORM:
            raise
        return await _page(visit, tracker, 422, error=error, keeps_entries="url" in visit.form)
    # Wake the dispatcher: the deliveries of the tracker may be due now (it was enabled), or must become dead (it was deleted).
    service.dispatcher.wake_up.notify()
    if action == "delete":
        return visit.redirect(visit.link("trackers", keep=False, deleted=1))
    if saved is not None:
        return await _page(visit, saved.tracker, saved=saved, keeps_entries="url" in visit.form)
    return visit.redirect(visit.link(f"trackers/{tracker.id}", keep=False))


async def _ask_before_rotation(visit: Visit, tracker: Tracker) -> Response:
    effects = ["Requests are signed with a new secret, which the next page shows once."]
    if tracker.secret_set:
        hours = DEFAULT_SECRET_OVERLAP_SECONDS // 3600
        text = f"For {counted(hours, 'hour')} they are also signed with the current secret."
        effects.append(f"{text}  By then, your endpoint must know the new secret.")
    if tracker.previous_secret_until is not None and tracker.previous_secret_until > visit.now:
        effects.append("At the moment, requests are also signed with an earlier secret. This ends now.")
    text = f"Replace the signing secret of {tracker.name or tracker.id}?"
    return _ask(visit, tracker, Question(text, effects, "Replace the secret", "rotate-ccw"))


def _ask(visit: Visit, tracker: Tracker, question: Question) -> Response:
    # The buttons for these actions belong to the form with the fields of the tracker, into which the operator may have typed.
    # Therefore the page that asks keeps the entries.
    return ask(visit, question, visit.link(f"trackers/{tracker.id}/edit", keep=False), keeps_entries=True)


async def _ask_before_deletion(visit: Visit, tracker: Tracker) -> Response:
    backlog = await visit.service.deliveries.backlog(tracker.id, visit.now)
    number = "10,000 or more" if backlog.pending >= MAX_COUNT else f"{backlog.pending:,}"
    waiting = f"{number} {'waiting delivery becomes' if backlog.pending == 1 else 'waiting deliveries become'}"
    effects = [
        f"{waiting} dead." if backlog.pending else "No delivery is waiting.",
        f"{host_of(tracker.url)} gets no more events of this application ({', '.join(tracker.events)}).",
        "A deleted tracker cannot be restored. To stop it for some time, disable it instead.",
    ]
    return _ask(visit, tracker, Question(f"Delete the tracker {tracker.name or tracker.id}?", effects, "Delete", "trash-2"))


#: The actions that an operator must confirm. The function of each action returns the confirmation page.
_QUESTIONS = {"delete": _ask_before_deletion, "rotate": _ask_before_rotation}


async def _page(
    visit: Visit,
    tracker: Tracker | None,
    status: int = 200,
    *,
    error: ApiError | None = None,
    saved: TrackerSaveResult | None = None,
    previews: Sequence[ExampleRequest] | None = None,
    keeps_entries: bool | None = None,
) -> Response:
    # After an error, and with a preview, the form shows what the operator entered.
    is_kept = (error is not None or previews is not None) if keeps_entries is None else keeps_entries
    form, lists, version = visit.form, visit.form_lists, visit.form.get(VERSION, "")
    if isinstance(error, FormChanged):
        form, lists, version = error.values, error.lists, error.version
    return visit.render(
        "tracker_editor.html",
        status,
        compress=saved is None,
        title=f"Change {tracker.name}" if tracker else "New tracker",
        tracker=tracker,
        fields={**dict.fromkeys(_TEXT_FIELDS, ""), **(form if is_kept else _fields_of(tracker))},
        chosen_events=lists.get("events", []) if is_kept else tracker.events if tracker else ["state", "conversion"],
        chosen_dispositions=lists.get("conversion_dispositions", [])
        if is_kept
        else (tracker and tracker.conversion_dispositions) or [],
        dispositions=DISPOSITION_TEXTS,
        version=version if is_kept else version_of(_values_of(tracker)) if tracker else "",
        events=EVENTS,
        formats={name: FORMAT_LABELS[name] for name in FORMATS},
        methods=METHODS,
        limits=LIMITS,
        defaults=_defaults(visit),
        form_id=new_form_id(),
        secret=None if saved is None else saved.secret,
        is_rotated=saved is not None and visit.form.get("action") == "rotate",
        is_kept=is_kept,
        previews=previews,
        indented=indented,
        error=error,
    )


def _fields_of(tracker: Tracker | None) -> dict[str, str]:
    """Return the initial values of the form. `tracker` is None for a new tracker."""
    if tracker is None:
        return {"enabled": "on", "format": "json", "method": "POST"}
    limits = {name: getattr(tracker, name) for name in LIMITS}
    return {
        "name": tracker.name,
        "url": tracker.url,
        "method": tracker.method,
        "format": tracker.format,
        "fields": ", ".join(tracker.fields or ()),
        "enabled": "on" if tracker.enabled else "",
        "with_suspected": "on" if tracker.with_suspected else "",
        "conversion_actions": "\n".join(tracker.conversion_actions or ()),
        **{name: "" if value is None else f"{value:g}" for name, value in limits.items()},
    }


def _values_of(tracker: Tracker) -> FormValues:
    """Return the values that the form of a stored tracker shows. The version of the form is computed from these values
    (form_versions.py)."""
    boxes = {"enabled": tracker.enabled, "with_suspected": tracker.with_suspected}
    lists = {"events": tracker.events, "conversion_dispositions": tracker.conversion_dispositions or []}
    return {**_fields_of(tracker), **boxes, **lists}


def _defaults(visit: Visit) -> dict[str, str]:
    """Return the default values of the limits as text. The form shows them in empty fields."""
    settings = visit.service.settings
    return {
        "max_attempts": f"Empty: {settings.delivery_attempts}.",
        "timeout": f"Empty: {settings.delivery_timeout:g}.",
        "concurrency": f"Empty: {settings.delivery_slots_per_tracker}.",
        "max_per_second": "Empty: no limit.",
    }


def _read_form(visit: Visit) -> dict[str, Any]:
    """Return the values in the form as the body of an API request. Empty fields are left out. Raise ApiError INVALID_REQUEST if a
    checkbox has an unknown value."""
    form = visit.form
    given: dict[str, Any] = {
        "url": form.get("url", "").strip(),
        "events": visit.choices("events", EVENT_NAMES),
        "enabled": bool(form.get("enabled")),
        "with_suspected": bool(form.get("with_suspected")),
    }
    for name in ("name", "method", "format", *LIMITS):
        if text := form.get(name, "").strip():
            given[name] = text
    if "conversion_actions" in form:  # The form of the previous release has no filter of conversions.
        given["conversion_actions"] = [line for line in form["conversion_actions"].splitlines() if line.strip()]
        given["conversion_dispositions"] = visit.choices("conversion_dispositions", DISPOSITIONS)
    if fields := [name for name in form.get("fields", "").replace(",", " ").split() if name]:
        given["fields"] = fields
    return given


async def _preview(visit: Visit, request: TrackerCreateRequest) -> list[ExampleRequest]:
    """Return the requests that the tracker in the form would get for the newest events of the selected kinds. If there are no
    such events, return the request for an example event. Raise ApiError if the URL is rejected."""
    service = visit.service
    template = await service.trackers.check_url(request.url)
    secret = example_secret(service.secret, visit.application_id)
    target = example_target(secret, request.format, url=template, method=request.method, fields=request.fields_)

    actions, dispositions = request.conversion_actions, request.conversion_dispositions
    conversions = make_filter(actions, dispositions)

    def read(connection: Connection) -> list[ExampleRequest]:
        page = list_events(connection, EventFilter(visit.application_id, since=visit.now - RECENT), 100)
        events = [(one.row.id, one.topic, one.row.at) for one in page.rows if one.topic.api_name in request.events]
        if conversions is not None:
            outcomes = conversion_outcomes(connection, [event for event, topic, _ in events if topic is Topic.CONVERSION])
            events = [one for one in events if one[1] is not Topic.CONVERSION or conversions.permits(*outcomes[one[0]])]
        return example_requests(connection, service.fanout, target, events[:PREVIEWED], visit.now)

    sample = sample_request(target, visit.application_id, visit.now, request.events[0], actions, dispositions)
    return await service.database.read(read) or [sample]


async def find_tracker(visit: Visit) -> Tracker:
    """Return the tracker whose id is in the URL path. Raise ApiError NOT_FOUND if there is none."""
    tracker_id = parse_counted_id(visit.path["id"])
    if tracker_id is None:
        raise ApiError(ErrorCode.NOT_FOUND)
    return await visit.service.trackers.get(tracker_id, visit.application_id)


PAGES = [
    PortalPage("/portal/{app}/trackers/new", new, create, role=Role.MANAGER, all_applications=False, needs_recent_password=True),
    PortalPage(
        "/portal/{app}/trackers/{id}/edit", edit, change, role=Role.MANAGER, all_applications=False, needs_recent_password=True
    ),
]
