"""This module defines a page of the portal (`PortalPage`) and the argument of its handler (`Visit`).

A page is a module with a list `PAGES`. Each `PortalPage` declares its path, its handler and the role that it requires. Before the
router calls the handler, it checks the session, the role, the application, and whether a form comes from the portal. Therefore no
handler can forget a check.
"""
# Tested by tests/portal/test_router.py

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from shortener.accounts.audit import Actor, AuditWriter
from shortener.accounts.directory import Application
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import ALL_APPLICATIONS, record
from shortener.portal.operators import Operator, Role
from shortener.portal.periods import PeriodChoice, parse_period
from shortener.portal.sessions import OperatorSession
from shortener.times import time_zone

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from shortener.container import Service
    from shortener.portal.parts import PortalParts

#: The word in a URL path that stands for all applications.
ALL = "all"
#: Query parameters that hyperlinks between pages keep: the period, its time zone, and whether events are counted by send date.
PERIOD_FIELDS = ("period", "since", "until", "tz", "basis")
#: Filters by a text that the sender chose. Spaces at the start and end of such a filter are kept, because the stored text may begin
#: or end with spaces. All other filters are ids, codes and words, so spaces around a pasted value are removed.
EXACT_FILTERS = ("campaign", "label")
#: The query parameter that contains a name if the path cannot contain it (`url`).
NAME_QUERY = "name"
#: The query parameter that makes a CSV file begin with a byte order mark, as in the API. Excel needs this mark to read UTF-8.
BOM_QUERY = "bom"
#: The query parameter with the key of kept entries. The form of the page shows these entries, which were kept during a new sign-in
#: (kept_entries.py).
KEPT_QUERY = "kept"


@record
class NavigationItem:
    """An entry of the navigation menu. `order` sorts the entries of a group (data, delivery, tools, setup or installation). The
    keyboard shortcut is g and then the letter `key`. `phone` is the position in the bar that phones show, which has four
    positions."""

    label: str
    icon: str
    order: int
    group: str = "data"
    key: str | None = None
    phone: int | None = None


@record
class PortalPage:
    """A page: one path with its handler.

    `path` begins with /portal and may contain `{app}`, the number of an application or `all`. `role` is the role that the operator
    needs in that application, or in the whole installation for a page without `{app}`. If it is None, every operator may open the
    page. `is_public`: no session is required. `csv`: the page also exists with `.csv` after its path, and `visit.is_csv` is true
    there. `post` handles the forms of the page; `post_role` is the role that these forms require, if it differs from `role`.
    `all_applications`: the page also exists for `all`. `needs_gateway`: the navigation menu contains the page only if the
    application has or had a gateway, or messages that a gateway sends. `allows_missing_code`: a session that still needs the code
    of the second factor is sufficient. `needs_recent_password`: the operator must have entered the password within the last ten
    minutes.
    """

    path: str
    get: Callable[[Visit], Awaitable[Response]] | None
    post: Callable[[Visit], Awaitable[Response]] | None = None
    role: Role | None = Role.VIEWER
    post_role: Role | None = None
    is_public: bool = False
    csv: bool = False
    navigation: NavigationItem | None = None
    all_applications: bool = True
    allows_missing_code: bool = False
    needs_gateway: bool = False
    needs_recent_password: bool = False


def _without_nul(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


@dataclass
class Visit:
    """One request for a page, as the handler of the page gets it after all checks of the router. `application` is None for `all`
    and for pages without an application. `applications` are the applications whose data the page shows. `form` contains the values
    of the form by field name; if a field is repeated, it contains the last value. `form_lists` contains all values of each field.
    `kept` contains the entries that the form of the page gets after a new sign-in.
    """

    portal: PortalParts
    request: Request
    page: PortalPage
    now: datetime
    network: str
    session: OperatorSession | None = None
    application: Application | None = None
    applications: tuple[Application, ...] = ()
    role: Role | None = None
    form: Mapping[str, str] = field(default_factory=dict)
    form_lists: Mapping[str, list[str]] = field(default_factory=dict)
    is_csv: bool = False
    kept: Mapping[str, Sequence[str]] | None = None

    @property
    def service(self) -> Service:
        return self.portal.service

    @property
    def path(self) -> Mapping[str, Any]:
        """The values of the parameters in the URL path, such as `id`."""
        return self.request.path_params

    @property
    def current_session(self) -> OperatorSession:
        """The session of the operator who is signed in. Do not use it on public pages, which have no session."""
        assert self.session is not None
        return self.session

    @property
    def operator(self) -> Operator:
        """The operator who is signed in. Do not use it on public pages, which have no operator."""
        return self.current_session.operator

    @property
    def is_fragment(self) -> bool:
        """Whether htmx requests a part of the page."""
        return self.request.headers.get("hx-request") == "true"

    @property
    def app_name(self) -> str:
        """The application as it is written in URL paths: its id, or `all`."""
        return ALL if self.application is None else str(self.application.id)

    @property
    def one_application(self) -> Application:
        """The application of the page. Raise ApiError NOT_FOUND for `all`."""
        if self.application is None:
            raise ApiError(ErrorCode.NOT_FOUND)
        return self.application

    @property
    def application_id(self) -> int:
        """The id of the application. Raise ApiError NOT_FOUND for `all`."""
        return self.one_application.id

    def may(self, role: Role) -> bool:
        """Return whether the operator has at least this role in the application of the page, or in the installation."""
        return self.role is not None and self.role >= role

    @cached_property
    def query(self) -> Mapping[str, str]:
        """The query parameters; the last value of each. The character NUL is replaced, because PostgreSQL rejects it."""
        return {_without_nul(name): _without_nul(value) for name, value in self.request.query_params.items()}

    def get(self, name: str) -> str | None:
        """Return the value of a query parameter; None if it is missing or empty. Spaces around it are removed, except in
        EXACT_FILTERS."""
        value = self.query.get(name, "")
        return (value if name in EXACT_FILTERS else value.strip()) or None

    def get_list(self, name: str) -> list[str]:
        """Return the values of a repeated query parameter that are not empty. The character NUL is replaced."""
        return [_without_nul(value) for value in self.request.query_params.getlist(name) if value]

    def choices(self, name: str, known: Sequence[str]) -> list[str]:
        """Return the values of a repeated field of the form, such as checkboxes, in the order of `known`. Raise ApiError
        INVALID_REQUEST for a value that is not in `known`. An unknown value must not be ignored, because an empty list could mean
        "no filter"."""
        sent = self.form_lists.get(name, ())
        if unknown := sorted(set(sent).difference(known)):
            reason = f"must not contain {unknown[0][:40]!r}; allowed: {', '.join(known)}"
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(name, reason)])
        return [one for one in known if one in sent]

    @cached_property
    def period(self) -> PeriodChoice:
        """The period that the query selects. Raise ApiError INVALID_REQUEST if it is not valid."""
        return parse_period(
            self.now,
            period=self.get("period"),
            since=self.get("since"),
            until=self.get("until"),
            zone_name=self.get("tz") or self.zone_name,
            basis=self.get("basis") or "event",
        )

    @property
    def zone(self) -> tzinfo:
        """The time zone in which the page shows times; UTC if the time zone in the query is unknown."""
        try:
            return time_zone(self.get("tz") or self.zone_name)
        except ValueError:
            return UTC

    @property
    def zone_name(self) -> str:
        """The time zone of the operator, or UTC."""
        return (self.session and self.session.operator.time_zone) or "UTC"

    def link(self, path: str, *, name: str | None = None, keep: bool = True, **query: Any) -> str:
        """Return a URL below /portal/{app}/ of this application, such as `visit.link("clicks", metric="clicks")`, or for a page
        about one message or campaign `visit.link("messages", name=message_id)`.

        If `keep` is true, the URL has the same period, time zone and date basis as this page. Parameters with the value None are
        left out."""
        fields: dict[str, Any] = self.period_query if keep else {}
        return url(f"/portal/{self.app_name}/{path}", {**fields, **query}, name=name)

    @property
    def period_query(self) -> dict[str, str]:
        """The query parameters of this request that select the period, for the URLs of other pages. If the period is not valid, the
        result is empty, so that the links of an error page do not lead to the same error."""
        try:
            _ = self.period
        except ApiError:
            return {}
        return {name: value for name in PERIOD_FIELDS if (value := self.get(name)) is not None}

    def name_in_path(self, parameter: str) -> str:
        """Return the message id or the campaign in the URL of this request, which `url` has created with `name`. `parameter` is the
        name of the path parameter that contains it."""
        name: str = self.path[parameter]
        return name or self.query.get(NAME_QUERY, "")

    @property
    def page_path(self) -> str:
        """The URL path of this page, not percent-encoded. For a CSV, it is the path of the page that shows the same rows."""
        path: str = self.request.scope["path"]
        return path.removesuffix(".csv") if self.is_csv else path

    def here(self, **changes: Any) -> str:
        """Return the URL of this page with changed query parameters. The value None removes a parameter. Empty parameters, the
        cursor of a list and the key of the kept entries of a form are always removed."""
        fields: dict[str, Any] = {name: self.get_list(name) for name in self.query if name not in ("cursor", KEPT_QUERY)}
        return url(self.page_path, {**fields, **changes})

    @property
    def fixed_url(self) -> str:
        """The URL of this page that shows the same figures later and to everybody: its period has dates and a time zone."""
        return self._with_period(self.period.since, self.period.until)

    @property
    def earlier_url(self) -> str:
        """The URL of this page for the period before."""
        return self._with_period(*self.period.earlier)

    @property
    def later_url(self) -> str | None:
        """The URL of this page for the period after; None if the period ends now."""
        later = self.period.later(self.now)
        return None if later is None else self._with_period(*later)

    def _with_period(self, since: datetime, until: datetime) -> str:
        return self.here(**self.period.query(since, until) | {"basis": self.get("basis")})

    @property
    def csv_url(self) -> str:
        """The URL of the CSV download that contains the rows of this page, with the same filters. The CSV has a byte order mark,
        because people open it with Excel."""
        path, _, query = self.here(**{BOM_QUERY: "true"}).partition("?")
        return f"{path}.csv?{query}"

    def render(self, template: str, status: int = 200, *, compress: bool = True, **context: Any) -> Response:
        """Return the page that a template renders. Set `compress` to False for pages that show a secret."""
        return self.portal.renderer.response(self, template, status, compress=compress, context=context)

    def redirect(self, location: str) -> Response:
        """Return a redirect that browsers follow with GET (status 303). `location` must be root-relative."""
        if self.is_fragment:
            return Response(status_code=204, headers={"HX-Redirect": quote(location, safe="/~@:+,;=!$&'()*?%#")})
        return RedirectResponse(location, 303)

    @property
    def actor(self) -> Actor:
        """The actor of this request, as audit rows store it."""
        if self.session is None:
            return Actor(network=self.network)
        return Actor(self.session.operator.id, self.session.operator.name, self.session.id, self.network)

    @property
    def audit_writer(self) -> AuditWriter:
        """The writer of audit rows about the operator of this request."""
        return AuditWriter(self.actor, self.service.ids)

    def audit(
        self,
        connection: Connection,
        action: str,
        subject: str = "",
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        actor: Actor | None = None,
        recipient: str | None = None,
    ) -> None:
        """Add a row to the audit log, in the transaction of the action itself. The arguments have the same meaning as in
        `AuditWriter.add`."""
        application_id = self.application.id if self.application is not None else None
        writer = self.audit_writer if actor is None else AuditWriter(actor, self.service.ids)
        writer.add(
            connection, self.now, action, subject, application_id=application_id, before=before, after=after, recipient=recipient
        )


def url(path: str, query: Mapping[str, Any] | None = None, *, name: str | None = None) -> str:
    """Return a root-relative URL. The path is percent-encoded; parameters with the value None are left out. A list as a value
    repeats its parameter.

    `name` is a text that a sender chose, such as a message id. The name is appended to the path. Browsers and proxies change some
    names in a path (`..`, or a slash at the beginning). Such a name becomes the query parameter `name` instead, and the path ends
    with a slash."""
    fields = {key: value for key, value in (query or {}).items() if value is not None}
    if name is not None:
        is_changed = "\n" in name or not {"", ".", ".."}.isdisjoint(name.split("/"))
        path += "/" if is_changed else f"/{name}"
        fields |= {NAME_QUERY: name} if is_changed else {}
    encoded = urlencode(fields, doseq=True)
    return quote(path, safe="/~@:+,;=!$&'()*") + ("?" + encoded if encoded else "")


__all__ = ["ALL", "ALL_APPLICATIONS", "KEPT_QUERY", "PERIOD_FIELDS", "NavigationItem", "PortalPage", "Visit", "url"]
