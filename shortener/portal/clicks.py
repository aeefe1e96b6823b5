"""GET /portal/{app}/clicks: the list of the hits that a figure of another page counts. For each hit, a sentence explains the
verdict."""
# Tested by tests/portal/test_pages.py

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.errors import StoreUnavailable
from shortener.model import Verdict
from shortener.portal.listing import FilterField, ListedRow, ListSource, campaign_of, choice, show_list, slots_of
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.verdict_texts import REASONS, RESULTS, RULE_NAMES, explain
from shortener.reporting.figures import Figures
from shortener.reporting.hits import HIT_CSV_COLUMNS, HitFilter, HitPage, count_rules, list_hits, serialize_hit

METRICS: dict[str, str] = {
    "clicks": "Clicks by people",
    "clicked_messages": "First click of each message",
    "clicked_links": "First click of each link",
    "suspected_hits": "Suspected hits",
    "ignored_hits": "Ignored hits",
    "late_hits": "Hits after expiry",
}
#: The groups of messages by their time from sending to the first click. Each is (name in a query, upper limit in seconds or None,
#: label).
CLICK_TIMES = (
    ("1m", 60, "Up to 1 min"),
    ("5m", 300, "1 to 5 min"),
    ("15m", 900, "5 to 15 min"),
    ("1h", 3600, "15 min to 1 h"),
    ("6h", 6 * 3600, "1 to 6 h"),
    ("1d", 86400, "6 h to 1 day"),
    ("3d", 3 * 86400, "1 to 3 days"),
    ("later", None, "Later"),
)
# The metrics of the hits that are not clicks. The rule that classified such a hit is the reason why it is not a click.
_NOT_COUNTED = ("suspected_hits", "ignored_hits")
CLICK_TIME_LIMITS = [limit for _, limit, _ in CLICK_TIMES if limit is not None]
_METRIC = FilterField("metric", "Show", METRICS, is_common=True)
_CLICK_TIME = FilterField("click_time", "Time to click", {name: label for name, _, label in CLICK_TIMES})
_DEVICE = FilterField("device", "Device", {name: name for name in ("phone", "tablet", "desktop", "bot", "other")})
_VERDICT = FilterField("verdict", "Verdict", {verdict.api_name: verdict.name.capitalize() for verdict in Verdict})
_RULE = FilterField("rule", "Reason", RULE_NAMES)
FIELDS = (
    _METRIC,
    FilterField("campaign", "Campaign", is_common=True),
    FilterField("country", "Country of the number (code)"),
    FilterField("destination", "Destination (host and path)"),
    FilterField("label", "Label"),
    _VERDICT,
    _RULE,
    FilterField("source", "Source", {"api": "API", "campaign": "Campaign"}),
    FilterField("message", "Message id"),
    FilterField("code", "Code of the link"),
    _DEVICE,
    FilterField("browser", "Browser"),
    _CLICK_TIME,
)


async def clicks(visit: Visit) -> Response:
    """Show the list of hits that match the filters, newest first."""
    reasons = None if visit.is_csv else await _reasons(visit)
    return await show_list(
        visit,
        "clicks.html",
        _source(visit),
        FIELDS,
        title="Clicks",
        results=RESULTS,
        metrics=METRICS,
        reasons=reasons,
        reason_texts=REASONS,
        rule_names=RULE_NAMES,
    )


async def _reasons(visit: Visit) -> list[tuple[str, int]]:
    """Return the reasons why hits of the list were not counted as clicks: (rule, number of hits).

    Reasons exist only for the metrics in _NOT_COUNTED, on the first page of the list of one application, without a filter by
    rule. Otherwise, and if there are too many hits to examine, the result is empty."""
    metric = choice(visit, _METRIC)
    if metric not in _NOT_COUNTED or visit.application is None or visit.get("rule") or visit.get("cursor"):
        return []
    try:
        found = await visit.service.database.read(count_rules, _filter(visit, visit.application.id))
    except StoreUnavailable:  # For example, the count takes too long. The page then shows the hits without the counts of reasons.
        return []
    return [] if found is None else list(found.items())


def _filter(visit: Visit, application_id: int) -> HitFilter:
    since, until = slots_of(visit)
    metric, verdict, chosen = choice(visit, _METRIC), choice(visit, _VERDICT), choice(visit, _CLICK_TIME)
    group = None if chosen is None else (CLICK_TIME_LIMITS, [name for name, _, _ in CLICK_TIMES].index(chosen))
    if group is not None:
        metric = "clicked_messages"  # Only the first click of a message has a time from sending to click.
    return HitFilter(
        application_id,
        since=since,
        until=until,
        basis=visit.period.basis,
        metric=metric,  # type: ignore[arg-type] # `choice` has already rejected every name that is not a metric
        verdict=None if verdict is None else Verdict[verdict.upper()],
        rule=choice(visit, _RULE),
        campaign=campaign_of(visit),
        source=visit.get("source"),
        country=country_of(visit),
        destination=visit.get("destination"),
        label=visit.get("label"),
        message=visit.get("message"),
        code=visit.get("code"),
        device=choice(visit, _DEVICE),
        browser=visit.get("browser"),
        click_time=group,
    )


def _source(visit: Visit) -> ListSource:
    service, networks = visit.service, visit.service.networks
    # Check the filters before the list is read, so that a wrong value is an error even if the page has no applications.
    _filter(visit, 0)

    def read(connection: Connection, application_id: int, limit: int, below: int | None) -> HitPage:
        return list_hits(connection, _filter(visit, application_id), limit, below)

    def serialize(listed: ListedRow) -> dict[str, Any]:
        return serialize_hit(listed.row, service.click_ids.encode, networks)

    def describe(page: Any, row: Any) -> dict[str, Any]:
        fields = serialize_hit(row, service.click_ids.encode, networks)
        return {**fields, "sentence": explain(row.rule, fields["counts_as"])}

    return ListSource("clicks", read, HIT_CSV_COLUMNS, serialize, lambda row: row.at, describe)


def click_times(figures: Figures) -> list[tuple[str, str, int]]:
    """Return (name in a query, label, number of messages) for each group of CLICK_TIMES."""
    numbers = figures.clicked_within(CLICK_TIME_LIMITS)
    return [(name, label, number) for (name, _, label), number in zip(CLICK_TIMES, numbers, strict=True)]


def country_of(visit: Visit) -> str | None:
    """Return the country that the query selects; None without this filter. "" selects recipients whose country is unknown
    (`country=unknown`)."""
    country = visit.get("country")
    return "" if country == "unknown" else country


PAGES = [
    PortalPage("/portal/{app}/clicks", clicks, csv=True, navigation=NavigationItem("Clicks", "mouse-pointer-click", 30, key="k"))
]
