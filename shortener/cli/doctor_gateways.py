"""The checks of `shortener doctor` about gateways: messages that wait, circuit breakers, held messages, and addresses.

`check_gateway_queues` reads the database. `check_gateway_addresses` opens one TCP connection to each gateway that the service
never calls through an HTTP proxy: SMPP gateways, and HTTP gateways with `allow_private`. It sends no data.
"""
# Tested by tests/cli/test_doctor.py

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from shortener.cli.doctor_findings import Finding
from shortener.plurals import counted

if TYPE_CHECKING:
    from shortener.gateways.gateway import StoredGateway
    from shortener.settings import Settings

MAX_WAITING_SECONDS = 300.0
MAX_GATEWAYS = 20  # Only this number of gateway addresses is checked, because the check of one address can take CONNECT_SECONDS.
CONNECT_SECONDS = 3.0


def check_gateway_queues(connection: Connection, now: datetime) -> Iterator[Finding]:
    """Report each gateway that has an open circuit breaker, messages that have waited for a long time, or held messages."""
    from shortener.reporting.gateway_queues import read_gateway_queues
    from shortener.storage.types import to_iso

    found = read_gateway_queues(connection, now)
    oldest = max((one.oldest_seconds for one in found), default=0.0)
    waiting = sum(one.waiting for one in found)
    if oldest <= MAX_WAITING_SECONDS and not any(one.is_open for one in found):
        text = f"{counted(waiting, 'message waits', 'messages wait')} for {counted(len(found), 'gateway')}"
        yield Finding("gateways", "ok", f"{text}, the oldest for {oldest:.0f} s")
    for one in found:
        name = f"gateway {one.id} ({one.name})"
        test = f"`shortener gateways test {one.id} NUMBER` shows the error"
        if one.disabled_reason:
            text = f"{name} is disabled: {one.disabled_reason}"
            yield Finding("gateways", "warning", text, f"correct the gateway, then `shortener gateways update {one.id} --enable`")
        if one.is_open:
            last = f"last success: {to_iso(one.last_success_at) or 'none'}"
            text = f"the circuit breaker of {name} is open after {counted(one.failures_in_row, 'failure')} in a row; {last}. "
            text += counted(one.waiting, "message waits", "messages wait")
            remedy = f"{test}; correct the gateway with `shortener gateways update {one.id}`. The pause takes at most 5 minutes; "
            yield Finding("gateways", "warning", text, f"{remedy}`--disable` and then `--enable` end it")
        elif one.oldest_seconds > MAX_WAITING_SECONDS:
            text = f"{counted(one.waiting, 'message waits', 'messages wait')} for {name}, the oldest for {one.oldest_seconds:.0f} s"
            remedy = "check that `shortener serve` or `shortener deliver` runs, and check --max-per-second of the gateway"
            yield Finding("gateways", "warning", text, f"{remedy}; {test}")
        if one.held:
            text = f"held messages: {one.held}, because {name} may have accepted them but did not respond"
            remedy = "`shortener sends list --status held`, then `shortener sends resend ID` or `shortener sends discard ID`"
            yield Finding("held_messages", "warning", text, remedy)


async def check_gateway_addresses(settings: Settings) -> list[Finding]:
    """Report each enabled gateway whose port accepts no TCP connection. Return [] if the database cannot be read."""
    from sqlalchemy.exc import SQLAlchemyError

    from shortener.accounts.directory import Directory
    from shortener.errors import StoreUnavailable
    from shortener.gateways.store import GatewayStore
    from shortener.model import utcnow
    from shortener.secret import SecretError, open_secret
    from shortener.storage.installation import NoInstallation, require_installation
    from shortener.storage.migrate import SchemaMismatch
    from shortener.storage.open import open_database

    try:
        await require_installation(settings)
        secret = open_secret(settings.secret, settings.data_dir)
        database = await open_database(settings.store_url, owner=False)
    except (StoreUnavailable, SchemaMismatch, NoInstallation, SecretError):
        return []  # `check_database` reports the same error, so it is not reported here.
    try:
        stored = await GatewayStore(database, secret, Directory(database), settings, utcnow).all()
    except (StoreUnavailable, SQLAlchemyError, SecretError):
        return []
    finally:
        await database.close()
    direct = [one for one in stored if one.enabled and (one.config.kind == "smpp" or one.config.allow_private)]
    found = await asyncio.gather(*map(_check_address, direct[:MAX_GATEWAYS]))
    return [one for one in found if one is not None]


async def _check_address(gateway: StoredGateway) -> Finding | None:
    """Return a finding if the port of a gateway accepts no connection; otherwise None."""
    from shortener.gateways.gateway import LostSettings
    from shortener.gateways.kinds import KINDS

    configured = gateway.config.settings
    target = None if isinstance(configured, LostSettings) else KINDS[gateway.config.kind].target(configured)
    if target is None:
        return None
    host, port = target
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        reason = "the port refuses connections"
    except (OSError, TimeoutError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or f"no connection within {CONNECT_SECONDS:g} seconds"
    else:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return None
    text = f"gateway {gateway.id} ({gateway.name}) accepts no connection at {host}, port {port}: {reason}"
    remedy = f"start the gateway, or correct its address with `shortener gateways update {gateway.id}`"
    return Finding("gateway_addresses", "warning", text, remedy)
