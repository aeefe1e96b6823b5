"""GET /portal/search: the search for a message, link, click, event or campaign by its id or name. It accepts a message id, a
phone number, a short URL or its code, a click id, an event id, and the name of a campaign. Each is looked up by an index in every
application that the operator may see. If there is a single result, the browser is redirected to its page.

A search for a phone number covers only the applications in which the operator may see complete numbers. Otherwise a viewer, who
sees only masked numbers, could confirm a guessed number.
"""
# Tested by tests/portal/test_pages.py

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, select
from starlette.responses import Response

from shortener.clicks.path import code_behind_prefix, code_of
from shortener.ids import ClickIds
from shortener.messages.phone_numbers import PhoneNumberError, parse_searched_number
from shortener.model import record
from shortener.portal.operators import Role
from shortener.portal.page import PortalPage, Visit, url
from shortener.reporting.event_list import find_event
from shortener.storage.schema import cohorts, hits, links, messages

MAX_LENGTH = 300


@record
class Found:
    """One search result: its kind, such as link, its name, and the URL of its page."""

    kind: str
    name: str
    href: str
    application_id: int


async def search(visit: Visit) -> Response:
    """Show the search results for a text. If there is only one, redirect to its page."""
    text = visit.query.get("q", "")[:MAX_LENGTH]
    found: Sequence[Found] = ()
    if text.strip():
        applications = [application.id for application in visit.applications]
        revealed = {one for one in applications if (visit.operator.role_in(one) or Role.VIEWER) >= Role.SUPPORT}
        found = await visit.service.database.read(find, text, applications, revealed, visit.service.click_ids)
        if len(found) == 1:
            return visit.redirect(found[0].href)
    names = {application.id: application.name for application in visit.applications}
    has_numbers = any((visit.operator.role_in(one) or Role.VIEWER) >= Role.SUPPORT for one in names)
    return visit.render("search.html", title="Search", text=text, found=found, names=names, has_numbers=has_numbers)


def find(
    connection: Connection, text: str, applications: Sequence[int], revealed: Collection[int], click_ids: ClickIds
) -> list[Found]:
    """Return the messages, links, clicks, events and campaigns of these applications whose id, name, code or phone number is this
    text. Phone numbers are searched only in the applications in `revealed`.

    Spaces around the text are ignored. But message ids and names of campaigns may begin or end with spaces, so they are also
    searched with these spaces."""
    found: list[Found] = []
    names = dict.fromkeys((text, text.strip()))
    text = text.strip()
    for application_id in applications:
        found += _named(connection, names, application_id)
        found += _in_application(connection, text, application_id, has_numbers=application_id in revealed)
    found += _links(connection, text, applications)
    hit_id = click_ids.decode(text)
    if hit_id is not None:
        found += _hits(connection, hit_id, applications)
    return found


def _in_application(connection: Connection, text: str, application_id: int, *, has_numbers: bool) -> list[Found]:
    found = []
    m = messages.c
    number = _number(text) if has_numbers else None
    if number is not None:
        to = select(m.id).where(m.to_address == number, m.application_id + 0 == application_id).limit(1)
        if connection.scalar(to) is not None:
            query = {"to": number, "period": "365d"}
            found.append(Found("Messages to", number, _page(application_id, "messages", query), application_id))
    if text.startswith("evt_"):
        event = find_event(connection, application_id, text)
        if event is not None and event[0].row.message_id is not None:
            message_id = event[0].row.message_id
            found.append(Found("Message of event", text, _page(application_id, "messages", name=message_id), application_id))
    return found


def _named(connection: Connection, names: Iterable[str], application_id: int) -> list[Found]:
    """Return the messages whose id is one of these texts, and the campaigns whose name is one of them."""
    found = []
    m, c = messages.c, cohorts.c
    for name in names:
        if connection.scalar(select(m.id).where(m.application_id == application_id, m.message_id == name)) is not None:
            found.append(Found("Message", name, _page(application_id, "messages", name=name), application_id))
        if connection.scalar(select(c.id).where(c.application_id == application_id, c.campaign == name).limit(1)) is not None:
            href = _page(application_id, "campaigns", {"period": "365d"}, name=name)
            found.append(Found("Campaign", name, href, application_id))
    return found


def _number(text: str) -> str | None:
    try:
        return parse_searched_number(text)
    except PhoneNumberError:
        return None


def _links(connection: Connection, text: str, applications: Sequence[int]) -> list[Found]:
    """Return a list with the link that has this short URL or code. The list is empty if there is none."""
    try:
        path = urlsplit(text).path if "/" in text else f"/{text}"
    except ValueError:
        return []
    if "://" not in text and "/" in text:
        path = "/" + text.partition("/")[2]
    behind = code_behind_prefix(path)
    codes = {code for code in (code_of(path), behind[1] if behind else None) if code}
    c = links.c
    rows = connection.execute(select(c.code, c.application_id).where(c.code.in_(codes))).all() if codes else []
    return [
        Found("Link", row.code, _page(row.application_id, f"links/{row.code}"), row.application_id)
        for row in rows
        if row.application_id in applications
    ]


def _hits(connection: Connection, hit_id: int, applications: Sequence[int]) -> list[Found]:
    statement = (
        select(links.c.application_id, messages.c.message_id)
        .join_from(hits, links, links.c.id == hits.c.link_id)
        .join(messages, messages.c.id == links.c.message_id)
        .where(hits.c.id == hit_id)
    )
    return [
        Found("Message of the click", name, _page(application_id, "messages", name=name), application_id)
        for application_id, name in connection.execute(statement)
        if application_id in applications
    ]


def _page(application_id: int, path: str, query: dict[str, Any] | None = None, *, name: str | None = None) -> str:
    return url(f"/portal/{application_id}/{path}", query, name=name)


PAGES = [PortalPage("/portal/search", search, role=None)]
