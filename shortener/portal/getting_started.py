"""The first steps with an application, which the overview shows. A step is done when the database contains its result, such as
the first message. Each look-up finds one row by an index. Messages that were created on the page *Try it* count, because they are
real messages. Only the step "Connect your pipeline" needs a message that was created elsewhere.
"""
# Tested by tests/portal/test_getting_started.py

from __future__ import annotations

import orjson
from sqlalchemy import Connection, select

from shortener.model import record
from shortener.portal.operators import Role
from shortener.portal.page import Visit
from shortener.portal.try_it import CAMPAIGN
from shortener.storage.schema import cohorts, first_clicks, messages, trackers

# The number of newest messages that are examined. The step "click" is done if one of them was clicked.
_SEARCHED = 1000
EXAMPLE = 'See #track("https://shop.example/")'


@record
class FirstStep:
    """One of the first steps: what to do, why, whether it is done, and the URL of the page on which to do it."""

    title: str
    text: str
    is_done: bool
    href: str | None = None
    command: str | None = None


async def first_steps(visit: Visit) -> list[FirstStep]:
    """Return the first steps of an application. The list is empty if every step is done, and on a page for all applications."""
    application = visit.application
    if application is None:
        return []
    has_message, has_click, has_tracker, has_own_message = await visit.service.database.read(_read, application.id)
    send = first_call(visit.service.settings.base_url, "YOUR_KEY")
    steps = [
        FirstStep("Create a message", "Write a text and see what its recipient would get.", has_message, visit.link("try")),
        FirstStep(
            "Open its link on your phone",
            "Scan the QR code of the message with a phone, and see the click arrive.",
            has_click,
            visit.link("live"),
        ),
        FirstStep(
            "Receive the events",
            "The built-in receiver shows the requests that your events cause. Then create a tracker with the URL of your own "
            "endpoint.",
            has_tracker,
            visit.link("receiver") if visit.may(Role.SUPPORT) else None,
        ),
        FirstStep(
            "Connect your pipeline",
            "Create an API key. Before your software sends a message, it sends the text to the rewrite endpoint. The page of the "
            "keys shows this command with your key:",
            has_own_message,
            visit.link("keys") if visit.may(Role.MANAGER) else None,
            send,
        ),
        FirstStep(
            "Use your own domain",
            "Recipients trust a domain name that they know. Create a DNS record that points this name to this service, and then "
            "add the domain here.",
            bool(application.domains),
            visit.link("domains", keep=False),
        ),
    ]
    return [] if all(step.is_done for step in steps) else steps


def first_call(base_url: str, key: str) -> str:
    """Return a curl command that sends a sample text to the rewrite endpoint, authenticated with this API key."""
    body = orjson.dumps({"to": "+14085550100", "body": EXAMPLE}).decode()
    return f"curl {base_url}/api/v1/rewrite -H 'X-API-Key: {key}' -H 'Content-Type: application/json' -d '{body}'"


def _read(connection: Connection, application_id: int) -> tuple[bool, bool, bool, bool]:
    """Return four booleans. They say whether the application has a message, a clicked message, a tracker, and a message that was
    not created on the page *Try it*."""
    m = messages.c
    has_message = connection.scalar(select(m.id).where(m.application_id == application_id).limit(1)) is not None
    newest = select(m.id).where(m.application_id == application_id).order_by(m.id.desc()).limit(_SEARCHED).subquery()
    has_click = connection.scalar(select(first_clicks.c.id).where(first_clicks.c.id.in_(select(newest.c.id))).limit(1)) is not None
    has_tracker = connection.scalar(select(trackers.c.id).where(trackers.c.application_id == application_id).limit(1)) is not None
    own = select(cohorts.c.id).where(cohorts.c.application_id == application_id, cohorts.c.campaign != CAMPAIGN).limit(1)
    return has_message, has_click, has_tracker, connection.scalar(own) is not None
