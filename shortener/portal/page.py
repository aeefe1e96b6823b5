"""What a page is, and what its handler receives.

A page is a module with a list `PAGES`. Each `PortalPage` declares its path, its handler and the role that it requires. The router
checks the session, the role, the application and the origin of forms before it calls the handler, so a handler cannot forget them.
"""
# Tested by tests/portal/test_router.py

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from shortener.accounts.audit import Actor, record
from shortener.accounts.directory import ALL_APPLICATIONS, Application
from shortener.errors import ApiError, ErrorCode
from shortener.portal.operators import Operator, Role
from shortener.portal.periods import PeriodChoice, parse_period
from shortener.portal.sessions import OperatorSession
from shortener.web.period import time_zone

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from shortener.container import Service
    from shortener.portal.parts import PortalParts

#: The name of all applications in a URL.
ALL = "all"
#: Query parameters that links keep when they lead from one page to another: the period and its time zone and basis.
PERIOD_FIELDS = ("period", "since", "until", "tz", "basis")


@dataclass(frozen=True, slots=True)
class NavigationItem:
    """An entry of the navigation. `order` sorts entries within their group: data, delivery, tools, setup or installation.

    `key`: the shortcut is g and this letter. `phone`: the place in the bar of phones, which has room for four entries."""

    label: str
    icon: str
    order: int
    group: str = "data"
    key: str | None = None
    phone: int | None = None


@dataclass(frozen=True, slots=True)
class PortalPage:
    """A page: one path with its handler.

    `path` begins with /portal and may contain `{app}`, the number of an application or `all`. `role` is the role that the
    operator needs in that application, or for a page without `{app}` in the whole installation; None: every operator may open it.
    `is_public`: no session is required. `csv`: the page also exists with `.csv` after its path, and `visit.is_csv` is true there.
    `post` handles the forms of the page; `post_role` is the role that they require, if it is another one. `all_applications`: the
    page also exists for `all`. `allows_missing_code`: a session that still needs the code of the second factor is sufficient.
    `needs_recent_password`: the operator must have entered the password within the last ten minutes.
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
    needs_recent_password: bool = False


@dataclass
class Visit:
    """One request for a page, after all checks.

    `application` is None for `all` and for pages without an application. `applications` are those whose data the page shows.
    `form` has the fields of a form; of a repeated field, the last value.
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

    @property
    def service(self) -> Service:
        return self.portal.service

    @property
    def path(self) -> Mapping[str, Any]:
        """The parameters of the path."""
        return self.request.path_params

    @property
    def operator(self) -> Operator:
        """The operator who is signed in. Pages that are public have none."""
        assert self.session is not None
        return self.session.operator

    @property
    def is_fragment(self) -> bool:
        """Whether htmx requests a part of the page."""
        return self.request.headers.get("hx-request") == "true"

    @property
    def app_name(self) -> str:
        """The application as URLs name it: its number, or `all`."""
        return ALL if self.application is None else str(self.application.id)

    @property
    def application_id(self) -> int:
        """The id of the application. Raise ApiError NOT_FOUND for `all`."""
        if self.application is None:
            raise ApiError(ErrorCode.NOT_FOUND)
        return self.application.id

    def may(self, role: Role) -> bool:
        """Return whether the operator has at least this role here."""
        return self.role is not None and self.role >= role

    def get(self, name: str) -> str | None:
        """Return a parameter of the query without surrounding spaces; None if it is missing or empty."""
        return (self.request.query_params.get(name) or "").strip() or None

    @cached_property
    def period(self) -> PeriodChoice:
        """The period of the query. Raise ApiError INVALID_REQUEST."""
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
        """The time zone of the page, for times; UTC if the query names an unknown one."""
        try:
            return time_zone(self.get("tz") or self.zone_name)
        except ValueError:
            return UTC

    @property
    def zone_name(self) -> str:
        """The time zone of the operator, or UTC."""
        return (self.session and self.session.operator.time_zone) or "UTC"

    def link(self, path: str, *, keep: bool = True, **query: Any) -> str:
        """Return a URL below /portal/{app}/ of this application, such as `visit.link("clicks", metric="clicks")`.

        `keep`: with the period, time zone and basis of this page. Parameters with the value None are left out."""
        fields: dict[str, Any] = self.period_query if keep else {}
        return url(f"/portal/{self.app_name}/{path}", {**fields, **query})

    @property
    def period_query(self) -> dict[str, str]:
        """The parameters of the period as this request has them, so that links keep them."""
        return {name: value for name in PERIOD_FIELDS if (value := self.get(name)) is not None}

    def here(self, **changes: Any) -> str:
        """Return the URL of this page with changed query parameters; None removes one. The position in a list is removed."""
        fields = {name: value for name, value in self.request.query_params.items() if name != "cursor"}
        return url(self.request.url.path.removesuffix(".csv"), {**fields, **changes})

    @property
    def csv_url(self) -> str:
        """The URL of this page as CSV, with the same filters."""
        path, _, query = self.here().partition("?")
        return path + ".csv" + ("?" + query if query else "")

    def render(self, template: str, status: int = 200, *, compress: bool = True, **context: Any) -> Response:
        """Return a page from a template. `compress` False: for pages that show a secret."""
        return self.portal.renderer.response(self, template, status, compress=compress, context=context)

    def redirect(self, location: str) -> Response:
        """Return a redirect that is followed with GET. `location` must be root-relative."""
        if self.is_fragment:
            return Response(status_code=204, headers={"HX-Redirect": quote(location, safe="/~@:+,;=!$&'()*?%#")})
        return RedirectResponse(location, 303)

    @property
    def actor(self) -> Actor:
        """Who acts in this request, for the audit log."""
        if self.session is None:
            return Actor(network=self.network)
        return Actor(self.session.operator.id, self.session.operator.name, self.session.id, self.network)

    def audit(
        self,
        connection: Connection,
        action: str,
        subject: str = "",
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        actor: Actor | None = None,
    ) -> None:
        """Add a row to the audit log, in the transaction of the action itself."""
        application_id = self.application.id if self.application is not None else None
        record(
            connection,
            self.service.ids(),
            self.now,
            actor or self.actor,
            action,
            subject,
            application_id=application_id,
            before=before,
            after=after,
        )


def url(path: str, query: Mapping[str, Any] | None = None) -> str:
    """Return a root-relative URL. The path is percent-encoded; parameters with the value None are left out."""
    fields = {name: value for name, value in (query or {}).items() if value is not None}
    return quote(path, safe="/~@:+,;=!$&'()*") + ("?" + urlencode(fields) if fields else "")


__all__ = ["ALL", "ALL_APPLICATIONS", "PERIOD_FIELDS", "NavigationItem", "PortalPage", "Visit", "url"]
