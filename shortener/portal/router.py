"""The portal as an ASGI application. It finds the page for a request, checks the request, and calls the handler of the page.

A request passes these steps in this order. A number is the status of the response if the request fails the step.

1. Static files are sent.
2. If the request changes something, it must come from a page of the portal (403).
3. The page for the path is looked up (404, 405).
4. The request needs a session. Without one, a redirect leads to the sign-in page. For a form of an operator whose session has
   expired, the response is the sign-in page itself, which keeps the entries of the form.
5. The role in the application is checked: 404 if the operator has no role there, 403 if the role is too low.
6. The form is read (400, 413, 415).
7. If the page requires a recent password and the operator has not entered it recently, the portal asks for it again.
8. A CSV is refused while another export of the session runs (429).
9. The handler runs.

An `ApiError` becomes an error page with the status and the code of the error. If the database is unavailable, the response is 503.
For any other exception, the response is 500 without details, and the exception is logged. Every response has the headers of
`security.py`, and pages have `Cache-Control: no-store`, so that the back button of the browser shows no page after signing out.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router

from shortener.clicks.client_address import client_of, shorten_address
from shortener.clicks.user_agents import parse_device
from shortener.errors import ApiError, ErrorCode, StoreUnavailable, unavailable_error
from shortener.ids import parse_counted_id
from shortener.model import ALL_APPLICATIONS
from shortener.portal.confirmation import ask_for_password
from shortener.portal.exports import AsgiResponse, Receive, Scope, Send
from shortener.portal.formats import duration
from shortener.portal.kept_entries import entries_of, load_entries
from shortener.portal.locations import CODE_PATH, SIGN_IN_PATH, page_before, sign_in_first
from shortener.portal.operators import Role
from shortener.portal.page import ALL, KEPT_QUERY, PortalPage, Visit
from shortener.portal.pages import all_pages
from shortener.portal.parts import PortalParts
from shortener.portal.rendering import Renderer
from shortener.portal.security import SAFE_METHODS, comes_from_portal, security_headers
from shortener.portal.sessions import SEEN_INTERVAL, OperatorSession, find_expired, find_session, mark_seen
from shortener.portal.signin import sign_in_again
from shortener.portal.static_files import serve_static, static_files

if TYPE_CHECKING:
    from shortener.container import Service

log = structlog.get_logger(__name__)

MAX_FORM_BYTES = 256 * 1024
MAX_FORM_FIELDS = 200

_APPLICATION_WITHOUT_SLASH = re.compile(r"/portal/(?:\d{1,10}|all)")


class Portal(PortalParts):
    """The portal as an ASGI application in one process."""

    def __init__(self, service: Service) -> None:
        super().__init__(service, Renderer(all_pages()))
        self._headers = [(name.lower().encode(), value.encode()) for name, value in security_headers(self.origin).items()]
        self._router = Router([route for page in all_pages() for route in self._routes(page)], redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *self._headers]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message["headers"] = headers
            await send(message)

        request = Request(scope, receive)
        response: AsgiResponse | None = serve_static(request) if request.method in ("GET", "HEAD") else None
        if response is None:
            response = await self._respond(request, scope)
        await response(scope, receive, send_secured)

    async def _respond(self, request: Request, scope: Scope) -> AsgiResponse:
        """Return the response to a request. An exception becomes an error page."""
        visit = Visit(self, request, _NO_PAGE, self.service.clock(), self.network_of(request))
        try:
            if request.method not in SAFE_METHODS and not comes_from_portal(request, self.origin):
                raise ApiError(ErrorCode.FORBIDDEN, "This form was not sent by a page of the portal. Open the page again.")
            if _APPLICATION_WITHOUT_SLASH.fullmatch(request.url.path):
                return visit.redirect(request.url.path + "/" + ("?" + request.url.query if request.url.query else ""))
            page, is_csv = self._find_page(scope)
            visit.page, visit.is_csv = page, is_csv
            early = await self._authorize(visit)
            if early is not None:
                return early
            if request.method not in SAFE_METHODS:
                await _read_form(visit)
                if page.needs_recent_password and (asked := await ask_for_password(visit)) is not None:
                    return asked
            elif (key := visit.get(KEPT_QUERY)) is not None and visit.session is not None:
                visit.kept = await load_entries(visit, key)
            handler = page.get if request.method in SAFE_METHODS else page.post
            assert handler is not None
            return await (_export(visit, handler) if is_csv else handler(visit))
        except ApiError as error:
            return self._error(visit, error)
        except StoreUnavailable as error:
            return self._error(visit, unavailable_error(error))
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception:
            log.exception("request_failed", method=request.method, path=visit.page.path)
            return self._error(visit, ApiError(ErrorCode.INTERNAL_ERROR))

    def _routes(self, page: PortalPage) -> list[Route]:
        methods = [*(["GET"] if page.get else []), *(["POST"] if page.post else [])]
        routes = [Route(page.path, _PageEndpoint(page, is_csv=False), methods=methods)]
        if page.csv:
            routes.insert(0, Route(page.path + ".csv", _PageEndpoint(page, is_csv=True), methods=["GET"]))
        return routes

    def _find_page(self, scope: Scope) -> tuple[PortalPage, bool]:
        """Return the page at the URL path of a request, and whether the request is for the CSV of the page. Raise ApiError
        NOT_FOUND or METHOD_NOT_ALLOWED."""
        if "\0" in scope["path"]:
            raise ApiError(ErrorCode.NOT_FOUND)
        found = None
        for route in self._router.routes:
            match, child = route.matches(scope)
            if match.value == 2:  # 2 means that the route matches both the path and the method.
                scope.update(child)
                endpoint: _PageEndpoint = child["endpoint"]
                return endpoint.page, endpoint.is_csv
            if match.value == 1:
                found = route
        raise ApiError(ErrorCode.NOT_FOUND if found is None else ErrorCode.METHOD_NOT_ALLOWED)

    async def _authorize(self, visit: Visit) -> Response | None:
        """Check the session and the role, and store the session and the applications in the visit. If the operator must sign in
        first, return the response that asks for it."""
        page, request = visit.page, visit.request
        token = request.cookies.get(self.cookie_name)
        if token:
            visit.session = await self.service.database.read(find_session, token, visit.now, self.limits)
        session = visit.session
        if page.is_public:
            return None
        if session is None:
            if "text/event-stream" in request.headers.get("accept", ""):
                # A script of a page cannot sign in. It gets an error instead of a redirect to the sign-in page.
                raise ApiError(ErrorCode.UNAUTHORIZED, "Sign in again.")
            return await self._request_sign_in(visit, token)
        if session.needs_code:
            return None if page.allows_missing_code else visit.redirect(sign_in_first(request, CODE_PATH))
        await self._mark_seen(session, visit)
        needed = page.role if request.method in SAFE_METHODS else page.post_role or page.role
        if "{app}" in page.path:
            self._choose_application(visit)
        else:
            visit.role = session.operator.roles.get(ALL_APPLICATIONS)
            visit.applications = self.known_applications(session)
        if visit.applications and (shown := visit.application or visit.applications[0]) and not visit.is_csv:
            # The visit needs this for the navigation menu, which shows some pages only if the application uses gateways.
            await self.find_gateway_use(shown.id)
        if needed is not None and not visit.may(needed):
            if needed is Role.ADMIN and "{app}" not in page.path:
                # Operators who are not admins must not learn that this page exists.
                raise ApiError(ErrorCode.NOT_FOUND)
            raise ApiError(ErrorCode.FORBIDDEN, f"Your role does not allow this. It requires the role {needed.label}.")
        return None

    async def _request_sign_in(self, visit: Visit, token: str | None) -> Response:
        """Return the response to a request without a session: the sign-in page, or a redirect to it. If the request is a form of
        an operator whose session has expired, the sign-in page keeps the entries of the form. For any other form, the sign-in
        page says that the entries are lost."""
        request = visit.request
        if request.method not in SAFE_METHODS:
            operator_id = await self.service.database.read(find_expired, token) if token else None
            if visit.is_fragment:
                # htmx inserts this response into the page, and the form with its entries stays there. A redirect would replace
                # the whole page.
                return visit.render("signed_out.html", 401, is_kept=operator_id is not None)
            if operator_id is not None:
                await _read_form(visit)
                if entries_of(visit):
                    return sign_in_again(visit, operator_id)
        return visit.redirect(sign_in_first(request, SIGN_IN_PATH))

    async def _mark_seen(self, session: OperatorSession, visit: Visit) -> None:
        # If the clock was set back, `seen_at` can be in the future, and the session would end too late. Therefore such a time is
        # replaced too.
        if abs(visit.now - session.seen_at) >= SEEN_INTERVAL:
            await self.service.database.write(mark_seen, session.id, visit.now)

    def _choose_application(self, visit: Visit) -> None:
        """Store in the visit the application that the URL path selects. Raise ApiError NOT_FOUND if it does not exist or if the
        operator has no role in it."""
        operator, name = visit.operator, visit.path["app"]
        if name == ALL:
            visit.role = operator.role_in(ALL_APPLICATIONS)
            visit.applications = self.known_applications(visit.current_session)
            if visit.role is None or not visit.page.all_applications:
                raise ApiError(ErrorCode.NOT_FOUND)
            return
        application_id = parse_counted_id(name)
        application = None if application_id is None else self.service.directory.application(application_id)
        role = None if application is None else operator.role_in(application.id)
        if application is None or role is None:
            raise ApiError(ErrorCode.NOT_FOUND)
        visit.application, visit.applications, visit.role = application, (application,), role

    def network_of(self, request: Request) -> str:
        """Return the IP network of the client (/24 or /48), for sessions, sign-in delays and the audit log."""
        return shorten_address(client_of(request, self.service.settings.trusted_proxies), "short")

    def _error(self, visit: Visit, error: ApiError) -> Response:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        # The error's description mentions the header `Retry-After`, which only callers of the API can see. The page shows a time
        # instead.
        wait = "in a moment" if error.retry_after is None else f"in {duration(error.retry_after)}"
        text = error.description.replace("after `Retry-After` seconds", wait).replace("`", "")
        is_period = (
            visit.request.method in SAFE_METHODS
            and bool(error.details)
            and {one.field for one in error.details} <= _PERIOD_LABELS.keys()
        )
        title = "This period is not valid" if is_period else _TITLES.get(error.code, "Not possible")
        response = visit.render(
            "error.html",
            error.code.http_status,
            error=error,
            text=text,
            title=title,
            is_period=is_period,
            labels=_PERIOD_LABELS,
            is_unknown_application=_names_unknown_application(visit),
            back=page_before(visit.request, self.origin),
        )
        response.headers.update(headers)
        return response


def _names_unknown_application(visit: Visit) -> bool:
    """Return whether the URL path contains an application that does not exist or that the operator may not see."""
    return visit.application is None and "{app}" in visit.page.path and visit.path["app"] != ALL


def load_portal(service: Service) -> Portal:
    """Load the static files and the expressions that parse user agents, and return the portal of a process.

    This takes a few hundred milliseconds. Call it in a thread, so that clicks do not wait for it."""
    static_files()
    parse_device("")
    return Portal(service)


class _PageEndpoint:
    """The endpoint of a Starlette route. It only carries a page: Starlette never calls it. `Portal` reads the page from it and
    calls the handler of the page."""

    def __init__(self, page: PortalPage, *, is_csv: bool) -> None:
        self.page = page
        self.is_csv = is_csv

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise HTTPException(500)  # `Portal` never calls endpoints.


async def _export(visit: Visit, handler: Callable[[Visit], Awaitable[Response]]) -> AsgiResponse:
    """Call a handler that exports a list as CSV, and return its response. Raise ApiError EXPORT_IN_PROGRESS if another export of
    the session is running."""
    export = visit.portal.exports.begin(visit.current_session.id)
    try:
        return export.wrap(await handler(visit))
    except BaseException:
        export.end()
        raise


_NO_PAGE = PortalPage("", None)

#: The labels that pages show for the query parameters of the period.
_PERIOD_LABELS = {"period": "Period", "since": "From", "until": "Until", "tz": "Time zone", "basis": "Counted by"}

_TITLES = {
    ErrorCode.UNAUTHORIZED: "You are signed out",
    ErrorCode.NOT_FOUND: "This page does not exist",
    ErrorCode.FORBIDDEN: "You may not do this",
    ErrorCode.METHOD_NOT_ALLOWED: "This page does not exist",
    ErrorCode.INVALID_REQUEST: "Something in this request is not valid",
    ErrorCode.RATE_LIMITED: "Too many attempts",
    ErrorCode.EXPORT_IN_PROGRESS: "Another export is running",
    ErrorCode.INTERNAL_ERROR: "Something failed",
    ErrorCode.UNAVAILABLE: "The database is not available",
    ErrorCode.OUTCOME_UNKNOWN: "It is not known whether this was stored",
}


async def _read_form(visit: Visit) -> None:
    """Read the fields of a form. Raise ApiError with the code BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE or INVALID_REQUEST."""
    request = visit.request
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in ("application/x-www-form-urlencoded", ""):
        raise ApiError(ErrorCode.UNSUPPORTED_MEDIA_TYPE)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise ApiError(ErrorCode.BODY_TOO_LARGE, f"The form is larger than {MAX_FORM_BYTES} bytes.")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS, errors="strict")
    except ValueError:
        raise ApiError(ErrorCode.INVALID_REQUEST, "The form is not valid UTF-8, or it has too many fields.") from None
    if any("\0" in name or "\0" in value for name, value in pairs):
        raise ApiError(ErrorCode.INVALID_REQUEST, "The form contains the character NUL.")
    visit.form = dict(pairs)
    lists: dict[str, list[str]] = {}
    for name, value in pairs:
        lists.setdefault(name, []).append(value)
    visit.form_lists = lists
