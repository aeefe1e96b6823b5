"""GET /portal/admin/system: the page that shows whether this node works, and how much work is waiting."""
# Tested by tests/portal/test_deliveries.py

from __future__ import annotations

from starlette.responses import Response

from shortener import __version__
from shortener.plurals import counted
from shortener.portal.operators import Role
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.storage.migrations import HEAD
from shortener.web.health import readiness

#: The labels and explanations that the page shows for the checks of /readyz.
CHECKS = {
    "process": ("Process", "The process has started and is not stopping."),
    "database": ("Database", "The database responds."),
    "writes": ("Writes", "The database accepts writes. If not, redirects still work and hits wait."),
    "schema": ("Schema", "The database schema fits this version."),
    "redis": ("Redis", "Redis has the link cache, and stores hits while the database is unavailable."),
    "jobs": ("Background work", "Delivery, counting, purge and the other tasks run."),
}


async def system(visit: Visit) -> Response:
    """Show the checks of this node, and whether the trackers of each application work."""
    service = visit.service
    ready = await readiness(service)
    checks = ready.checks.model_dump(by_alias=True)
    trackers = await service.trackers.all()
    waiting = []
    for tracker in trackers:
        backlog = await service.deliveries.backlog(tracker.id, visit.now)
        if backlog.pending or backlog.dead or not tracker.enabled:
            waiting.append((tracker, backlog))
    settings = service.settings
    return visit.render(
        "admin_system.html",
        title="System",
        is_ready=ready.status == "ready",
        checks=[(*CHECKS[name], state) for name, state in checks.items()],
        waiting=waiting,
        facts=[
            ("Version", __version__),
            ("Schema", HEAD),
            ("Database", service.database.dialect),
            ("Address of short links", settings.base_url),
            ("Links expire after", counted(settings.link_ttl_days, "day")),
            ("Hits are kept for", counted(settings.hit_retention_days, "day")),
            ("Messages are kept for", counted(settings.message_retention_days, "day")),
        ],
    )


PAGES = [
    PortalPage("/portal/admin/system", system, role=Role.ADMIN, navigation=NavigationItem("System", "server", 40, "installation"))
]
