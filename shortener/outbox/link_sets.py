"""A link set contains the destinations and labels of a message's links, for statistics by destination and by label.

Each link refers to the link set that contains only this link. Each message refers to the link set of all its links. Messages of a
campaign usually have the same links and share a link set, so a count delta needs only its id (`outbox/count_deltas.py`).

A destination is the host and the path of a URL, without its query. In one campaign, only the first MAX_NAMES destinations are
stored with their names. All other destinations are stored with the name OTHER. Labels have the same limit. Two processes that add
names at the same time may exceed the limit by a few names. Statistics then count these names as OTHER.
"""

# Tested by tests/web/test_statistics.py

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import orjson
from sqlalchemy import Connection, select

from shortener.storage import schema
from shortener.storage.database import upsert
from shortener.urls import DEFAULT_PORTS

# The maximum number of destinations of one campaign that are stored by name. The same limit applies to its labels.
MAX_NAMES = 200
OTHER = "other"
MAX_NAME_LENGTH = 200  # The maximum number of characters of a destination or a label; the rest is cut off.
MAX_CACHED_SETS = 100_000

#: A link in a link set: its destination, and its label or None.
LinkName = tuple[str, str | None]


class LinkSetKey(NamedTuple):
    """The key of a link set: application, campaign and links. `links` are sorted and contain no duplicates."""

    application_id: int
    campaign: str
    links: tuple[LinkName, ...]


@lru_cache(maxsize=1024)
def destination_of(url: str) -> str:
    """Return the host and the path of a URL. A scheme other than http and https stays in the result, and so does a port that is
    not the default.

    Results are cached, because most messages of a campaign have the same links."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    rest = rest.partition("#")[0].partition("?")[0].removesuffix("/")
    if port := DEFAULT_PORTS.get(scheme.lower()):
        host, slash, path = rest.partition("/")
        rest = host.removesuffix(f":{port}") + slash + path
    name = rest if scheme.lower() in ("", "http", "https") else f"{scheme}://{rest}"
    return name[:MAX_NAME_LENGTH]


def link_set_key(application_id: int, campaign: str, links: Iterable[tuple[str, str | None]]) -> LinkSetKey:
    """Return the key of a link set. `links` are (URL, label) of each link."""
    names = {(destination_of(url), None if label is None else label[:MAX_NAME_LENGTH]) for url, label in links}
    return LinkSetKey(application_id, campaign, _in_order(names))


def _in_order(names: set[LinkName]) -> tuple[LinkName, ...]:
    """Return the links in the order that a LinkSetKey requires. A link without a label precedes the links with labels."""
    if len(names) == 1:  # nearly all messages have one link
        return tuple(names)
    return tuple(sorted(names, key=lambda name: (name[0], name[1] is not None, name[1] or "")))


class LinkSets:
    """Finds the ids of link sets, and inserts new link sets. The ids are cached, because rows of link sets never change."""

    def __init__(self) -> None:
        self._ids: dict[LinkSetKey, int] = {}

    def get_ids(self, connection: Connection, keys: set[LinkSetKey]) -> dict[LinkSetKey, int]:
        """Return the id of each link set. Insert the link sets that are new."""
        found = {key: self._ids[key] for key in keys if key in self._ids}
        missing = keys - found.keys()
        if not missing:
            return found
        named = _limit_names(connection, missing)
        # The link sets are inserted in sorted order, so two processes that insert the same ones cannot deadlock.
        ids: dict[str, int] = {}
        for digest, key in sorted((_hash(limited), limited) for limited in set(named.values())):
            ids[digest] = _find(connection, digest) or _insert(connection, digest, key)
        return found | {key: ids[_hash(limited)] for key, limited in named.items()}

    def remember(self, ids: dict[LinkSetKey, int]) -> None:
        """Cache the ids that `get_ids` returned. Call this after the commit of the transaction."""
        if len(self._ids) > MAX_CACHED_SETS:
            self._ids.clear()
        self._ids.update(ids)


def _limit_names(connection: Connection, keys: set[LinkSetKey]) -> dict[LinkSetKey, LinkSetKey]:
    """Replace the destinations and labels above the limit of their campaign by OTHER. Return the new key for each original
    key."""
    known: dict[tuple[int, str], tuple[set[str], set[str]]] = {}
    limited = {}
    for key in sorted(keys, key=lambda one: orjson.dumps(tuple(one))):
        group = (key.application_id, key.campaign)
        if group not in known:
            known[group] = _read_names(connection, *group)
        destinations, labels = known[group]
        links = {
            (_limit(destination, destinations), None if label is None else _limit(label, labels))
            for destination, label in key.links
        }
        limited[key] = LinkSetKey(key.application_id, key.campaign, _in_order(links))
    return limited


def _limit(name: str, known: set[str]) -> str:
    if name not in known:
        if len(known) >= MAX_NAMES:
            return OTHER
        known.add(name)
    return name


def _read_names(connection: Connection, application_id: int, campaign: str) -> tuple[set[str], set[str]]:
    table = schema.link_sets.c
    rows = connection.scalars(select(table.links).where(table.application_id == application_id, table.campaign == campaign))
    destinations: set[str] = set()
    labels: set[str] = set()
    for links in rows:
        for destination, label in links:
            destinations.add(destination)
            if label is not None:
                labels.add(label)
    return destinations - {OTHER}, labels - {OTHER}


def _hash(key: LinkSetKey) -> str:
    return hashlib.blake2b(orjson.dumps(tuple(key)), digest_size=16).hexdigest()


def _find(connection: Connection, digest: str) -> int | None:
    row_id: int | None = connection.scalar(select(schema.link_sets.c.id).where(schema.link_sets.c.hash == digest))
    return row_id


def _insert(connection: Connection, digest: str, key: LinkSetKey) -> int:
    values = {
        "application_id": key.application_id,
        "campaign": key.campaign,
        "hash": digest,
        "links": [list(name) for name in key.links],
    }
    statement = upsert(connection, schema.link_sets).values(values).on_conflict_do_nothing().returning(schema.link_sets.c.id)
    row_id: int | None = connection.scalar(statement)
    if row_id is None:  # Another process has inserted the link set since it was looked up.
        row_id = _find(connection, digest)
        assert row_id is not None
    return row_id
