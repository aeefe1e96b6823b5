"""The objects that all pages of the portal share: the service, the session limits, the password checks, the renderer and the
session cookie."""
# Tested by tests/portal/test_router.py

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from starlette.responses import Response

from shortener.portal.exports import Exports
from shortener.portal.live_feed import LiveFeed
from shortener.portal.passwords import Passwords
from shortener.portal.sessions import OperatorSession, session_limits
from shortener.portal.sign_in_delays import SignInDelays
from shortener.reporting.sends import uses_gateways

if TYPE_CHECKING:
    from jinja2 import Template

    from shortener.container import Service
    from shortener.secret import Secret


class PageRenderer(Protocol):
    """The methods of the renderer (`rendering.Renderer`) that pages call."""

    def template(self, name: str) -> Template: ...
    def response(self, visit: Any, name: str, status: int, *, compress: bool, context: Mapping[str, Any]) -> Response: ...


def cookie_name(secret: Secret, *, is_https: bool) -> str:
    """Return the name of the session cookie."""
    return ("__Host-session-" if is_https else "session-") + secret.key("portal cookie").hex()[:8]


class PortalParts:
    """The shared objects of the portal in one process. They contain no data that another process needs.

    `_gateway_users` is a cache: the ids of the applications that are known to have or to have had a gateway. An id is never
    removed."""

    def __init__(self, service: Service, renderer: PageRenderer) -> None:
        self.service = service
        self.renderer = renderer
        self.origin = service.settings.portal_origin
        self.is_https = self.origin.startswith("https://")
        self.cookie_name = cookie_name(service.secret, is_https=self.is_https)
        self.limits = session_limits(service.settings)
        self.passwords = Passwords()
        self.delays = SignInDelays(service.secret.key("sign-in failures"))
        self.live = LiveFeed(service.database, service.clock)
        self.exports = Exports()
        self._gateway_users: set[int] = set()

    def known_applications(self, session: OperatorSession | None) -> tuple[Any, ...]:
        """Return the applications that the operator of a session may see. The list is empty while the session still needs the
        code of the second factor."""
        if session is None or session.needs_code:
            return ()
        return tuple(one for one in self.service.directory.applications() if session.operator.role_in(one.id) is not None)

    def uses_gateways(self, application_id: int) -> bool:
        """Return whether the application has or had a gateway, or messages that a gateway sends, as far as this process knows."""
        application = self.service.directory.application(application_id)
        return application_id in self._gateway_users or (application is not None and application.gateway is not None)

    async def find_gateway_use(self, application_id: int) -> None:
        """If `uses_gateways` is false, look in the database whether the application has or had a gateway. Raise
        StoreUnavailable."""
        if not self.uses_gateways(application_id) and await self.service.database.read(uses_gateways, application_id):
            self._gateway_users.add(application_id)

    def set_cookie(self, response: Response, token: str) -> Response:
        """Set the session cookie of the browser to the token of a session."""
        response.set_cookie(self.cookie_name, token, path="/", secure=self.is_https, httponly=True, samesite="lax")
        return response

    def delete_cookie(self, response: Response) -> Response:
        """Delete the session cookie of the browser."""
        response.delete_cookie(self.cookie_name, path="/", secure=self.is_https, httponly=True, samesite="lax")
        return response
