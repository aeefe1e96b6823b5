"""GET /portal: a redirect to the overview of the first application that the operator may see."""
# Tested by tests/portal/test_router.py

from __future__ import annotations

from starlette.responses import Response

from shortener.portal.page import PortalPage, Visit


async def home(visit: Visit) -> Response:
    """Redirect to an overview, or explain that the operator has no role yet."""
    known = [one for one in visit.applications if not one.disabled] or list(visit.applications)
    if not known:
        return visit.render("no_application.html", title="No application")
    return visit.redirect(f"/portal/{known[0].id}/")


PAGES = [PortalPage("/portal", home, role=None), PortalPage("/portal/", home, role=None)]
