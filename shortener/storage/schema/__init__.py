"""The tables of the database, for SQLite and PostgreSQL. The other packages import all tables from here.

Messages, links, hits, events, deliveries, attempts and conversions have ids from `ids.py`, which grow with time. Applications,
keys, trackers, domains and other configuration have small ids from the database.
Every change of these modules requires a migration in `storage/migrations/`. A test compares the two.
"""

from shortener.storage.schema.accounts import (
    api_keys,
    applications,
    blocked_hosts,
    domains,
    expiry_notices,
    idempotency,
    installation,
    node_leases,
    postback_keys,
    stored_responses,
    tracker_tokens,
)
from shortener.storage.schema.base import RowId, metadata
from shortener.storage.schema.billing import balance_changes, balances, opt_outs, prices
from shortener.storage.schema.conversions import (
    conversion_actions,
    conversion_revisions,
    conversions,
    processes,
    refused_conversions,
)
from shortener.storage.schema.counts import NOT_ROLLED_UP, count_deltas, count_groups, counts, link_sets, rollups
from shortener.storage.schema.deliveries import attempts, deliveries, delivery_processes, trackers
from shortener.storage.schema.events import OTHER_EVENTS, QUARANTINED, events, events_of, is_event_of_message, is_pending_click
from shortener.storage.schema.gateways import gateways, send_attempts, sends
from shortener.storage.schema.hits import OTHER_HITS, hits, hits_dead_letter, other_hits
from shortener.storage.schema.messages import (
    cohorts,
    current_state,
    early_hits,
    erasure_repeats,
    first_clicks,
    is_clicked,
    link_changes,
    link_updates,
    links,
    messages,
    previous_state,
    report_polls,
)
from shortener.storage.schema.operators import (
    audit_log,
    operator_invitations,
    operator_recovery_codes,
    operator_roles,
    operator_sessions,
    operators,
    sign_in_failures,
)

__all__ = [
    "NOT_ROLLED_UP",
    "OTHER_EVENTS",
    "OTHER_HITS",
    "QUARANTINED",
    "RowId",
    "api_keys",
    "applications",
    "attempts",
    "audit_log",
    "balance_changes",
    "balances",
    "blocked_hosts",
    "cohorts",
    "conversion_actions",
    "conversion_revisions",
    "conversions",
    "count_deltas",
    "count_groups",
    "counts",
    "current_state",
    "deliveries",
    "delivery_processes",
    "domains",
    "early_hits",
    "erasure_repeats",
    "events",
    "events_of",
    "expiry_notices",
    "first_clicks",
    "gateways",
    "hits",
    "hits_dead_letter",
    "idempotency",
    "installation",
    "is_clicked",
    "is_event_of_message",
    "is_pending_click",
    "link_changes",
    "link_sets",
    "link_updates",
    "links",
    "messages",
    "metadata",
    "node_leases",
    "operator_invitations",
    "operator_recovery_codes",
    "operator_roles",
    "operator_sessions",
    "operators",
    "opt_outs",
    "other_hits",
    "postback_keys",
    "previous_state",
    "prices",
    "processes",
    "refused_conversions",
    "report_polls",
    "rollups",
    "send_attempts",
    "sends",
    "sign_in_failures",
    "stored_responses",
    "tracker_tokens",
    "trackers",
]
