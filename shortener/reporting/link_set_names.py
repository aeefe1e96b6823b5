"""This module finds link sets by the destination or the label of one of their links."""
# Tested by tests/web/test_lists.py

from __future__ import annotations

from typing import Protocol

from sqlalchemy import Connection, select

from shortener.storage.schema import link_sets


class LinkSetFilter(Protocol):
    """The conditions that a link set must fulfil. A condition that is None is ignored."""

    @property
    def application_id(self) -> int: ...
    @property
    def campaign(self) -> str | None: ...
    @property
    def destination(self) -> str | None: ...
    @property
    def label(self) -> str | None: ...


def find_link_sets(connection: Connection, filters: LinkSetFilter) -> list[int]:
    """Return the ids of the link sets in which the same link has this destination and this label."""
    statement = select(link_sets.c.id, link_sets.c.links).where(link_sets.c.application_id == filters.application_id)
    if filters.campaign is not None:
        statement = statement.where(link_sets.c.campaign == filters.campaign)
    return [
        row.id
        for row in connection.execute(statement)
        if any(filters.destination in (None, destination) and filters.label in (None, label) for destination, label in row.links)
    ]
