"""This module renders the templates of pages. It contains the Jinja environment with its filters and functions, and it compresses
the rendered pages.

Templates escape every value. If a template uses a name that the handler did not pass, it raises an error. Templates contain no
scripts and no style attributes, which the Content-Security-Policy would block (a test checks them).

A page that shows a secret is not compressed, because the size of a compressed page could reveal parts of the secret.
"""
# Tested by tests/portal/test_router.py

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import Response

from shortener import __version__
from shortener.errors import ApiError
from shortener.logs import mask
from shortener.portal import formats
from shortener.portal.charts import bar_chart
from shortener.portal.form_filling import fill_form
from shortener.portal.form_versions import FIELD as VERSION
from shortener.portal.icons import ICONS
from shortener.portal.operators import THEMES, Role
from shortener.portal.outcome_texts import TOPIC_LABELS, delivery_outcome, send_outcome
from shortener.portal.page import ALL, ALL_APPLICATIONS, PortalPage, Visit, url
from shortener.portal.periods import CUSTOM, PERIODS
from shortener.portal.repeats import FIELD as FORM_ID
from shortener.portal.repeats import new_form_id
from shortener.portal.static_files import static_files
from shortener.times import parse_iso

if TYPE_CHECKING:
    from jinja2 import Template

MIN_COMPRESSED_BYTES = 1000
SEARCH_PATH = "/portal/search"
_GROUPS = ("data", "delivery", "tools", "setup", "installation")


class NavigationEntry(NamedTuple):
    """An entry of the navigation menu, as the template shows it."""

    label: str
    icon: str
    url: str
    is_current: bool
    key: str | None
    phone: int | None


class Renderer:
    """A renderer of pages. It builds the navigation menu from `pages`, the list of all pages of the portal."""

    def __init__(self, pages: Sequence[PortalPage]) -> None:
        self._environment = environment()
        self._has_search = any(page.path == SEARCH_PATH for page in pages)
        self._navigation = sorted(
            (page for page in pages if page.navigation is not None),
            key=lambda page: (_GROUPS.index(page.navigation.group), page.navigation.order),  # type: ignore[union-attr]  # the pages without navigation are left out above
        )

    def template(self, name: str) -> Template:
        return self._environment.get_template(name)

    def response(self, visit: Visit, name: str, status: int, *, compress: bool, context: Mapping[str, Any]) -> Response:
        """Render a template as the response to a visit."""
        known = visit.portal.known_applications(visit.session)
        text = self.template(name).render(
            visit=visit,
            operator=visit.session.operator if visit.session is not None and not visit.session.needs_code else None,
            known_applications=known,
            navigation=self._groups(visit, known),
            has_search=self._has_search,
            is_encrypted=visit.portal.is_https or _is_loopback(visit),
            now=visit.now,
            **context,
        )
        if visit.kept is not None:
            text = fill_form(
                text, visit.request.url.path, visit.kept, random_fields=frozenset({FORM_ID}), kept_fields=frozenset({VERSION})
            )
            compress = False  # The page contains entries of a form. They can be secrets, so the page is not compressed.
        content = text.encode()
        headers = {"Vary": "Accept-Encoding, HX-Request"}
        if compress and len(content) >= MIN_COMPRESSED_BYTES and "gzip" in visit.request.headers.get("accept-encoding", ""):
            content = gzip.compress(content, 5, mtime=0)
            headers["Content-Encoding"] = "gzip"
        return Response(content, status, headers, "text/html; charset=utf-8")

    def _groups(self, visit: Visit, known: Sequence[Any]) -> list[list[NavigationEntry]]:
        """Return, by group, the entries of the navigation menu whose pages this operator may open."""
        if visit.session is None or visit.session.needs_code:
            return []
        operator = visit.session.operator
        app = visit.app_name if "{app}" in visit.page.path else (str(known[0].id) if known else None)
        groups: dict[str, list[NavigationEntry]] = {}
        for page in self._navigation:
            item = page.navigation
            assert item is not None
            if "{app}" in page.path:
                if app is None or (app == ALL and not page.all_applications):
                    continue
                role = operator.role_in(ALL_APPLICATIONS if app == ALL else int(app))
            else:
                role = operator.roles.get(ALL_APPLICATIONS)
            if page.needs_gateway and not (app and app != ALL and visit.portal.uses_gateways(int(app))):
                continue
            if page.role is not None and (role is None or role < page.role):
                continue
            path = page.path.replace("{app}", app or "")
            is_below = not path.endswith("/") and visit.request.url.path.startswith(path + "/")
            target = url(path, visit.period_query if "{app}" in page.path else None)
            entry = NavigationEntry(item.label, item.icon, target, visit.page is page or is_below, item.key, item.phone)
            groups.setdefault(item.group, []).append(entry)
        return list(groups.values())


@cache
def environment() -> Environment:
    """Return the environment in which all templates of the portal are rendered. It is the same for all installations.

    The first call compiles all templates, which takes a few hundred milliseconds. Call this function in a thread, so that clicks do
    not wait for it."""
    environment = Environment(
        loader=PackageLoader("shortener.portal", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        static=lambda name: static_files()[name],
        url=url,
        bar_chart=bar_chart,
        periods=PERIODS,
        custom_period=CUSTOM,
        themes=THEMES,
        Role=Role,
        version=__version__,
        country_name=formats.country_name,
        delivery_outcome=delivery_outcome,
        topic_labels=TOPIC_LABELS,
        send_outcome=send_outcome,
        search_path=SEARCH_PATH,
        icons=ICONS,
        parse_iso=parse_iso,
        new_form_id=new_form_id,
    )
    environment.filters.update(
        number=formats.number,
        money=formats.money,
        decimal_places=formats.decimal_places,
        padding=formats.padding,
        short_number=formats.short_number,
        percent=formats.percent,
        points=formats.points,
        change=formats.change,
        duration=formats.duration,
        sentence=formats.sentence,
        clock=formats.clock,
        iso=formats.iso,
        masked=mask,
        by_field=_by_field,
        browser=formats.browser,
        visible=formats.visible,
    )
    for name in environment.list_templates(extensions=["html"]):
        environment.get_template(name)
    return environment


def _by_field(error: ApiError | None) -> dict[str, str]:
    """Return, by the name of the form field, the reason why its value was rejected."""
    reasons: dict[str, list[str]] = {}
    for detail in error.details if error is not None else ():
        reasons.setdefault(detail.field, []).append(detail.reason)
    return {field: "; ".join(found) for field, found in reasons.items()}


def _is_loopback(visit: Visit) -> bool:
    host = visit.request.url.hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
