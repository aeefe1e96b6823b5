"""The gateways in the directory of accounts. This module reads only the columns that a process needs to accept messages and
delivery reports, not the settings of the gateways. It also decides which gateways the requests of an application may name.
"""
# Tested by tests/gateways/test_store.py

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select

from shortener.model import ALL_APPLICATIONS, record
from shortener.storage import schema

#: The name of the gateway that sends nothing and simulates delivery reports. Every application may use it.
SIMULATOR = "simulator"


@record
class GatewayEntry:
    """A gateway in the directory. `application_id` is ALL_APPLICATIONS for a gateway of the installation."""

    id: int
    application_id: int
    name: str
    kind: str
    enabled: bool


def read_gateways(connection: Connection) -> tuple[dict[int, GatewayEntry], dict[str, int]]:
    """Return a dictionary of the gateways by id, and a dictionary of their ids by the hash of their report key. Removed gateways
    are left out."""
    g = schema.gateways.c
    columns = g.id, g.application_id, g.name, g.kind, g.enabled, g.report_key_hash
    gateways: dict[int, GatewayEntry] = {}
    report_keys: dict[str, int] = {}
    for row in connection.execute(select(*columns).where(g.removed_at.is_(None)).order_by(g.id)):
        gateways[row.id] = GatewayEntry(row.id, row.application_id, row.name, row.kind, row.enabled)
        report_keys[row.report_key_hash] = row.id
    return gateways, report_keys


def read_removed_gateways(connection: Connection) -> dict[int, str]:
    """Return the name of each removed gateway that an application still has selected, by id."""
    g, a = schema.gateways.c, schema.applications.c
    selected = select(a.gateway_id).where(a.gateway_id.is_not(None))
    rows = connection.execute(select(g.id, g.name).where(g.removed_at.is_not(None), g.id.in_(selected)))
    return {row.id: row.name for row in rows}


def usable_gateways(
    application_id: int, selected: GatewayEntry | None, gateways: Iterable[GatewayEntry]
) -> tuple[GatewayEntry, ...]:
    """Return the gateways that requests of an application may name: its own gateways, the gateway that it has selected, and the
    simulator.

    A request for a name gets the first gateway with this name. Therefore the application's own gateways come first."""
    own = [one for one in gateways if one.application_id == application_id]
    simulator = [one for one in gateways if one.application_id == ALL_APPLICATIONS and one.name == SIMULATOR]
    return tuple(dict.fromkeys([*own, *([selected] if selected else []), *simulator]))
