"""This module replaces the placeholders for values of a message in the fallback URL of a domain or an application.

The rewriter fills in the fallback URL of a single message. But the fallback URL of a domain or an application applies to many
messages, so its placeholders are filled in only when an expired link redirects to it. Only for such a hit does this module read
the values of the message from the database.
"""
# Tested by tests/clicks/test_resolver.py and tests/clicks/test_redirect.py

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, select

from shortener.clicks.queries import LinkRow
from shortener.clicks.resolver import Hit, Resolution
from shortener.redirect_locations import fill_placeholders, message_values
from shortener.storage.schema import cohorts, messages
from shortener.urls import DESTINATION_PLACEHOLDERS

_UNKNOWN = dict.fromkeys(DESTINATION_PLACEHOLDERS, "")


def is_unfilled(resolution: Resolution) -> bool:
    """Return whether the resolution is a redirect to a fallback URL that may contain placeholders."""
    return resolution.gone and resolution.location is not None and b"{" in resolution.location


def fill_empty(resolution: Resolution) -> Resolution:
    """Replace the placeholders in the fallback URL by empty texts. Call this if the values of the message cannot be read."""
    return resolution._replace(location=fill_placeholders(resolution.location or b"", _UNKNOWN))


def fill_from_messages(
    connection: Connection, hits: Sequence[Hit], links: Mapping[str, LinkRow], resolutions: list[Resolution]
) -> None:
    """Replace the placeholders in the fallback URLs of `resolutions`. The values come from the message of each link. `hits` and
    `resolutions` have the same order."""
    unfilled = {index: links[hits[index].code].message for index, one in enumerate(resolutions) if is_unfilled(one)}
    if not unfilled:
        return
    columns = (messages.c.id, messages.c.message_id, messages.c.to_address, cohorts.c.campaign)
    statement = select(*columns).join_from(messages, cohorts, cohorts.c.id == messages.c.cohort_id)
    rows = {row.id: row for row in connection.execute(statement.where(messages.c.id.in_(set(unfilled.values()))))}
    for index, message in unfilled.items():
        resolution, row = resolutions[index], rows.get(message)
        if row is None or resolution.location is None:
            resolutions[index] = fill_empty(resolution)
            continue
        values = message_values(row.message_id, row.campaign, row.to_address)
        resolutions[index] = resolution._replace(location=fill_placeholders(resolution.location, values))
