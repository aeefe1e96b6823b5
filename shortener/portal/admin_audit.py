"""GET /portal/admin/audit: the page that shows admins the audit log, with filters and a CSV download."""

# Tested by tests/portal/test_admin_audit.py

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy import Connection
from starlette.responses import Response

from shortener.accounts.audit import COMMAND_LINE
from shortener.portal import formats
from shortener.portal.audit import API_KEYS, AuditFilter, AuditPage, list_audit
from shortener.portal.csv_download import csv_download
from shortener.portal.listing import exported_query
from shortener.portal.operators import Role, list_operators
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.reporting.csv_lists import PAGE_ROWS, stream_csv
from shortener.web.paging import Cursors

PATH = "/portal/admin/audit"
LIMIT = 50
COLUMNS = ("time", "time_utc", "operator", "action", "object", "application_id", "network", "session_id", "before", "after")

#: The label that the page shows for each action of the audit log. If an action has no label, the page shows its stored name.
ACTIONS = {
    "signed_in": "Signed in",
    "signed_out": "Signed out",
    "sign_in_failed": "Sign-in failed",
    "code_failed": "Wrong code of the second factor",
    "password_check_failed": "Wrong password in a confirmation",
    "recovery_code_used": "Recovery code used",
    "recovery_codes_renewed": "New recovery codes",
    "second_factor_enabled": "Second factor turned on",
    "second_factor_disabled": "Second factor turned off",
    "password_changed": "Password changed",
    "sessions_ended": "Sessions ended",
    "invitation_accepted": "Invitation accepted",
    "operator_invited": "Operator invited",
    "operator_reset": "Operator reset",
    "operator_disabled": "Operator disabled",
    "operator_enabled": "Operator enabled",
    "role_granted": "Role granted",
    "role_removed": "Role removed",
    "application_created": "Application created",
    "application_renamed": "Application renamed",
    "application_disabled": "Application disabled",
    "application_enabled": "Application enabled",
    "settings_changed": "Settings of an application changed",
    "callback_secret_rotated": "Callback secret replaced",
    "balance_changed": "Balance changed",
    "balance_removed": "Balance removed",
    "price_set": "Price set",
    "price_removed": "Price removed",
    "domain_added": "Domain added",
    "domain_changed": "Domain changed",
    "domain_made_default": "Domain made the default",
    "domain_enabled": "Domain enabled",
    "domain_disabled": "Domain disabled",
    "domain_removed": "Domain removed",
    "host_blocked": "Destination host blocked",
    "host_unblocked": "Destination host unblocked",
    "gateway_created": "Gateway created",
    "gateway_changed": "Gateway changed",
    "gateway_tested": "Test message sent by a gateway",
    "gateway_removed": "Gateway removed",
    "send_resent": "Held message sent again",
    "send_discarded": "Held message given up",
    "opt_out_added": "Number added to the opt-out list",
    "opt_out_removed": "Number removed from the opt-out list",
    "tracker_created": "Tracker created",
    "tracker_changed": "Tracker changed",
    "tracker_secret_replaced": "Secret of a tracker replaced",
    "tracker_deleted": "Tracker deleted",
    "api_key_created": "API key created",
    "api_key_changed": "API key changed",
    "api_key_revoked": "API key revoked",
    "postback_key_created": "Postback key created",
    "postback_key_rotated": "Postback key replaced",
    "postback_key_revoked": "Postback key revoked",
    "tracker_token_rotated": "Tracker token replaced",
    "link_changed": "Link changed",
    "links_changed": "Change of many links started",
    "links_update_stopped": "Change of many links stopped",
    "list_exported": "List exported as CSV",
    "number_revealed": "Phone number revealed",
    "data_erased": "Personal data erased",
    "message_created": "Message created in Try it",
    "test_delivery_sent": "Test event sent to a tracker",
    "delivery_replayed": "Delivery replayed",
    "deliveries_replayed": "Deliveries replayed",
    "replay_started": "Replay of dead deliveries started",
    "replay_stopped": "Replay of dead deliveries stopped",
    "events_requeued": "Quarantined events sent again",
    "hits_reclassified": "Hits classified again",
    "counts_repaired": "Counts repaired",
    "purge_started": "Purge started on the command line",
    "secret_adopted": "New secret adopted",
    "backup_restored": "Backup restored",
}


async def audit_log(visit: Visit) -> Response:
    """Show a page of the audit log, or all matching rows as CSV."""
    period = visit.period
    # If the period ends now, the filter has no end time, so that the list includes audit rows that are added during the request.
    until = None if period.until >= visit.now else period.until
    filters = AuditFilter(period.since, until, visit.get("operator"), visit.get("action"))
    database = visit.service.database
    if visit.is_csv:
        await database.write(_record_export, visit)

        async def read(below: int | None) -> AuditPage:
            return await database.read(list_audit, filters, PAGE_ROWS, below)

        return await csv_download(visit, stream_csv(read, lambda row: _csv_row(visit, row), COLUMNS), "audit")
    cursors = Cursors(visit.service.secret, "audit")
    below = cursors.decode(visit.get("cursor"))
    page = await database.read(list_audit, filters, LIMIT, below)
    return visit.render(
        "admin_audit.html",
        title="Audit log",
        rows=page.rows,
        next=cursors.encode(page.next),
        is_first=below is None,
        actions=ACTIONS,
        actors=[COMMAND_LINE.name, API_KEYS],
        operators=[one.name for one in await database.read(list_operators)],
        action=filters.action,
        operator_filter=filters.operator,
    )


def _record_export(connection: Connection, visit: Visit) -> None:
    visit.audit(connection, "list_exported", "audit log", after=exported_query(visit))


def _csv_row(visit: Visit, row: Any) -> dict[str, Any]:
    return {
        "time": row.at.astimezone(visit.zone).isoformat(timespec="seconds"),
        "time_utc": formats.iso(row.at),
        "operator": row.operator,
        "action": row.action,
        "object": row.object,
        "application_id": row.application_id,
        "network": row.network,
        "session_id": row.session_id,
        "before": orjson.dumps(row.before).decode() if row.before else "",
        "after": orjson.dumps(row.after).decode() if row.after else "",
    }


PAGES = [
    PortalPage(
        PATH, audit_log, role=Role.ADMIN, csv=True, navigation=NavigationItem("Audit log", "scroll-text", 30, "installation")
    )
]
