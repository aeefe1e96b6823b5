"""This module defines a page of the portal (`PortalPage`) and the argument of its handler (`Visit`).

A module of pages has a list `PAGES`. Each `PortalPage` in it declares a path, a handler and the required role. Before the router
calls a handler, it checks the session, the role, the application, and whether a form comes from the portal. Therefore no handler
can forget a check.
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

#: The segment of a URL path that means "all applications".
ALL = "all"
#: The query parameters that hyperlinks from page to page keep: the period, its time zone, and the date basis (send date or event
#: time).
PERIOD_FIELDS = ("period", "since", "until", "tz", "basis")
#: Filters whose values are texts that senders choose. Such a text may begin or end with spaces, so spaces around the value of the
#: filter are kept. All other filters are ids, codes and words. Spaces around their values are removed, because people often paste
#: a value with spaces around it.
EXACT_FILTERS = ("campaign", "label")
#: The query parameter that replaces a name in the path if the path cannot contain this name (`url`).
NAME_QUERY = "name"
#: The query parameter that adds a byte order mark to the beginning of a CSV file, as in the API. Excel reads UTF-8 only with this
#: mark.
BOM_QUERY = "bom"
#: The query parameter with the key of kept entries. The form of the page shows the entries that the portal kept while the
#: operator signed in again (kept_entries.py).
KEPT_QUERY = "kept"


@record
class NavigationItem:
    """An entry of the navigation menu. `group` is data, delivery, tools, setup or installation; `order` sorts the entries of a
    group. The keyboard shortcut is the letter g, followed by the letter `key`. `phone` is the position (1 to 4) in the navigation
    bar on phones; None: not in this bar."""

    label: str
    icon: str
    order: int
    group: str = "data"
    key: str | None = None
    phone: int | None = None


@record
class PortalPage:
    """A page of the portal: a path, its handler, and what a request for it requires.

    `path` begins with /portal and may contain `{app}`, which is the id of an application or the word `all`. `role` is the role
    that the operator needs in that application, or in the whole installation for a page without `{app}`. If `role` is None, every
    operator may open the page. `is_public`: no session is required. `csv`: a path with `.csv` at the end also leads to the page;
    `visit.is_csv` is then true. `post` handles the forms of the page; `post_role` is the role that these forms require, if it
    differs from `role`. `all_applications`: `{app}` may be `all`. `needs_gateway`: the navigation menu contains the page only if
    the application has or had a gateway, or messages that a gateway sends. `allows_missing_code`: a session that still needs the
    code of the second factor is sufficient. `needs_recent_password`: the operator must have entered the password within the last
    ten minutes.
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
    """One request for a page. The handler gets it after the router has made all checks. `application` is None for `all` and for
    pages without an application. `applications` are the applications whose data the page shows. `form` contains the values of the
    form by field name; if a field is repeated, it contains the last value. `form_lists` contains all values of each field. After
    a new sign-in, `kept` contains the kept entries for the form of the page.
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
        """The part of the URL path that selects the application: its id, or `all`."""
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
        """The query parameters. If a parameter is repeated, only its last value is included. The character NUL is replaced,
        because PostgreSQL rejects it."""
        return {_without_nul(name): _without_nul(value) for name, value in self.request.query_params.items()}

    def get(self, name: str) -> str | None:
        """Return the value of a query parameter; None if it is missing or empty. Spaces around the value are removed, except for
        the parameters in EXACT_FILTERS."""
        value = self.query.get(name, "")
        return (value if name in EXACT_FILTERS else value.strip()) or None

    def get_list(self, name: str) -> list[str]:
        """Return all values of a repeated query parameter, without empty values. The character NUL is replaced."""
        return [_without_nul(value) for value in self.request.query_params.getlist(name) if value]

    def choices(self, name: str, known: Sequence[str]) -> list[str]:
        """Return the values of a repeated field of the form, such as checkboxes, in the order of `known`. Raise ApiError
        INVALID_REQUEST for a value that is not in `known`. An unknown value must not be ignored: if it was the only value, the
        list would be empty, and an empty list can mean "no filter"."""
        sent = self.form_lists.get(name, ())
        if unknown := sorted(set(sent).difference(known)):
            reason = f"must not contain {unknown[0][:40]!r}; allowed: {', '.join(known)}"
            raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(name, reason)])
        return [one for one in known if one in sent]

    @cached_property
    def period(self) -> PeriodChoice:
        """The period that the query selects. Raise ApiError INVALID_REQUEST if the query is not valid."""
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
        """Return a URL below /portal/{app}/ for this application, for example with `visit.link("clicks", metric="clicks")`. For a
        page about one message or campaign, pass its name: `visit.link("messages", name=message_id)`.

        If `keep` is true, the URL has the same period, time zone and date basis as this page. Parameters with the value None are
        left out."""
        fields: dict[str, Any] = self.period_query if keep else {}
        return url(f"/portal/{self.app_name}/{path}", {**fields, **query}, name=name)

    @property
    def period_query(self) -> dict[str, str]:
        """The query parameters with which other pages show the same period as this page. If the period is not valid, there are
        none, so that the links of the error page do not lead to the same error."""
        try:
            _ = self.period
        except ApiError:
            return {}
        return {name: value for name in PERIOD_FIELDS if (value := self.get(name)) is not None}

    def name_in_path(self, parameter: str) -> str:
        """Return the message id or the name of the campaign that the URL of this request contains (see `url`). `parameter` is the
        name of the path parameter for it."""
        name: str = self.path[parameter]
        return name or self.query.get(NAME_QUERY, "")

    @property
    def page_path(self) -> str:
        """The URL path of this page, not percent-encoded. For the CSV of a page, it is the path of the page itself."""
        path: str = self.request.scope["path"]
        return path.removesuffix(".csv") if self.is_csv else path

    def here(self, **changes: Any) -> str:
        """Return the URL of this page with these query parameters changed; None removes a parameter. Always remove empty
        parameters, the cursor of a list, and the key of kept entries."""
        fields: dict[str, Any] = {name: self.get_list(name) for name in self.query if name not in ("cursor", KEPT_QUERY)}
        return url(self.page_path, {**fields, **changes})

    @property
    def fixed_url(self) -> str:
        """The URL of this page with a fixed period: it contains dates and a time zone. Everybody sees the same figures with it,
        also later."""
        return self._with_period(self.period.since, self.period.until)

    @property
    def earlier_url(self) -> str:
        """The URL of this page for the period before the current one."""
        return self._with_period(*self.period.earlier)

    @property
    def later_url(self) -> str | None:
        """The URL of this page for the period after the current one. None if the current period ends now."""
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
        """Return the response that a template renders. Set `compress` to False if the page shows a secret."""
        return self.portal.renderer.response(self, template, status, compress=compress, context=context)

    def redirect(self, location: str) -> Response:
        """Return a redirect that browsers follow with GET (status 303). `location` must be root-relative."""
        if self.is_fragment:
            return Response(status_code=204, headers={"HX-Redirect": quote(location, safe="/~@:+,;=!$&'()*?%#")})
        return RedirectResponse(location, 303)

    @property
    def actor(self) -> Actor:
        """The operator of this request, as the actor of audit rows."""
        if self.session is None:
            return Actor(network=self.network)
        return Actor(self.session.operator.id, self.session.operator.name, self.session.id, self.network)

    @property
    def audit_writer(self) -> AuditWriter:
        """A writer of audit rows whose actor is the operator of this request."""
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
        """Add a row to the audit log. Call this in the transaction of the action that the row describes. The arguments are those
        of `AuditWriter.add`."""
        application_id = self.application.id if self.application is not None else None
        writer = self.audit_writer if actor is None else AuditWriter(actor, self.service.ids)
        writer.add(
            connection, self.now, action, subject, application_id=application_id, before=before, after=after, recipient=recipient
        )


def url(path: str, query: Mapping[str, Any] | None = None, *, name: str | None = None) -> str:
    """Return a root-relative URL. The path is percent-encoded. A parameter with the value None is left out. A parameter with a
    list as its value is repeated for each item.

    `name` is a text that a sender chose, such as a message id. It is appended to the path. But browsers and proxies would change
    some names in a path (`..`, or a slash at the beginning). Such a name becomes the query parameter `name` instead, and the path
    ends with a slash."""
    fields = {key: value for key, value in (query or {}).items() if value is not None}
    if name is not None:
        is_changed = "\n" in name or not {"", ".", ".."}.isdisjoint(name.split("/"))
        path += "/" if is_changed else f"/{name}"
        fields |= {NAME_QUERY: name} if is_changed else {}
    encoded = urlencode(fields, doseq=True)
    return quote(path, safe="/~@:+,;=!$&'()*") + ("?" + encoded if encoded else "")


__all__ = ["ALL", "ALL_APPLICATIONS", "KEPT_QUERY", "PERIOD_FIELDS", "NavigationItem", "PortalPage", "Visit", "url"]
