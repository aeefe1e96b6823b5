"""This module changes links that were already sent: the destination, the expiry, the fallback URL, and whether the link is
enabled. Each change is stored in the history of the link.

A redirect reads the row of the link each time, so a change takes effect at once on every node. The link cache serves redirects
while the database is unavailable. Therefore a change has three steps: the caller deletes the cache entries of the links, changes
their rows in a transaction, and calls `refresh_cache_after_commit`, which stores the new values in the cache. If two processes
change one link at the same time, `refresh_cache` reads the row again and stores the latest values.

The functions with the parameter `connection` are parts of one transaction.
"""
# Tested by tests/web/test_links.py

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, bindparam, insert, select, update

from shortener.accounts.audit import Actor, AuditWriter
from shortener.accounts.directory import Application
from shortener.accounts.link_targets import TargetHosts, check_link_target, target_warnings
from shortener.clicks.cache_entries import read_cache_entries
from shortener.errors import ApiError, Detail, ErrorCode, StoreUnavailable
from shortener.ids import IdGenerator
from shortener.model import LinkFlag
from shortener.redirect_locations import fill_placeholders, message_values
from shortener.redis.link_cache import CachedLink, LinkCache
from shortener.storage.database import Database
from shortener.storage.schema import cohorts, link_changes, links, messages
from shortener.storage.types import AnyRow, to_iso, to_ms
from shortener.times import EARLIEST, parse_iso, to_utc
from shortener.urls import Destination, UrlError, host_of, parse_destination

MAX_LIFETIME = timedelta(days=3650)  # a new expiry may be at most this long after the time of the change
MAX_HISTORY_ENTRIES = 100  # maximum number of history entries that are returned for a link
MAX_REFRESHES = 5  # maximum number of attempts to refresh a cache entry while other processes change its link

#: The columns of a link that are needed to compute a change.
CHANGE_COLUMNS = (
    links.c.id,
    links.c.code,
    links.c.application_id,
    links.c.url,
    links.c.location,
    links.c.flags,
    links.c.fallback_url,
    links.c.expires_at,
    links.c.disabled_at,
    messages.c.message_id,
    messages.c.to_address,
    cohorts.c.campaign,
)


def parse_changes(requested: Mapping[str, Any], application: Application, hosts: TargetHosts, now: datetime) -> dict[str, Any]:
    """Validate requested changes. Return them in the form that `write_changes` requires: JSON values by field.

    `requested` contains one or more of url, expires_at (aware datetime), fallback_url (None removes it) and enabled. Raise
    ApiError INVALID_REQUEST with a detail for each invalid field."""
    changes: dict[str, Any] = {}
    details: list[Detail] = []
    for name in ("url", "fallback_url"):
        if name not in requested:
            continue
        value = requested[name]
        if name == "fallback_url" and not value:
            changes[name] = None
            continue
        try:
            target = check_link_target(application, value or "", hosts)
            changes[name] = target.url if name == "url" else target.location.decode()
        except UrlError as error:
            details.append(Detail(name, error.reason))
    if "expires_at" in requested:
        expires_at = requested["expires_at"]
        if expires_at is None:
            details.append(Detail("expires_at", "must be a time"))
        elif expires_at < EARLIEST:  # probably a value that was never set, such as 0001-01-01
            details.append(Detail("expires_at", f"must not be before the year {EARLIEST.year}"))
        elif expires_at > now + MAX_LIFETIME:
            details.append(Detail("expires_at", f"must be at most {MAX_LIFETIME.days} days in the future"))
        else:
            changes["expires_at"] = to_iso(expires_at)
    if "enabled" in requested:
        if requested["enabled"] is None:
            details.append(Detail("enabled", "must be true or false"))
        else:
            changes["enabled"] = requested["enabled"]
    if details:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=details)
    if not changes:
        reason = "must be present, or one of expires_at, fallback_url and enabled must be present"
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("url", reason)])
    return changes


def change_warnings(requested: Mapping[str, Any]) -> list[str]:
    """Return the warnings about a new destination or fallback URL. A warning says that the URL contains an HTML entity, or a
    macro that is not filled in."""
    return [
        f"{name} {problem}"
        for name in ("url", "fallback_url")
        if requested.get(name)
        for problem in target_warnings(requested[name])
    ]


def find_changeable(connection: Connection, code: str, application_id: int | None = None) -> AnyRow:
    """Return a link for `write_changes`, and lock it until the transaction ends. Raise ApiError NOT_FOUND if the application has
    no link with this code."""
    statement = _select_changeable().where(links.c.code == code)
    if application_id is not None:
        statement = statement.where(links.c.application_id == application_id)
    row = connection.execute(statement.with_for_update(of=links)).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, "There is no link with this code.")
    return row


def find_changeable_by_ids(connection: Connection, ids: Sequence[int]) -> Sequence[AnyRow]:
    """Return links for `write_changes`, in the order of their ids, and lock them until the transaction ends."""
    return connection.execute(_select_changeable().where(links.c.id.in_(ids)).order_by(links.c.id).with_for_update(of=links)).all()


def _select_changeable() -> Any:
    statement = select(*CHANGE_COLUMNS).join_from(links, messages, messages.c.id == links.c.message_id)
    return statement.join(cohorts, cohorts.c.id == links.c.cohort_id)


def write_changes(
    connection: Connection,
    rows: Sequence[AnyRow],
    changes: Mapping[str, Any],
    *,
    actor: Actor,
    now: datetime,
    ids: IdGenerator,
    update_id: int | None = None,
) -> int:
    """Change links and add the changes to their history. Return the number of links whose values have changed.

    `changes` is the result of `parse_changes`. Links of an erased message are skipped: they have no destination and stay disabled.
    Each change of a single link also adds a row to the audit log. A link update (`update_id`) adds one row for all of its links."""
    target = _parse_stored(changes["url"]) if "url" in changes else None
    updates: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    for row in rows:
        if not row.url:
            continue
        values, differences = _compute(row, changes, target, now)
        if not differences:
            continue
        updates.append({"link": row.id, **values})
        history.append(
            {
                "id": ids(),
                "link_id": row.id,
                "application_id": row.application_id,
                "at": now,
                "actor": actor.name,
                "update_id": update_id,
                "changes": differences,
            }
        )
    if updates:
        connection.execute(
            update(links)
            .where(links.c.id == bindparam("link"))
            .values({name: bindparam(name) for name in updates[0] if name != "link"}),
            updates,
        )
        connection.execute(insert(link_changes), history)
    if update_id is None:
        codes = {row.id: row.code for row in rows}
        for entry in history:
            code, application_id = codes[entry["link_id"]], entry["application_id"]
            before, after = ({name: audited_value(name, pair[i]) for name, pair in entry["changes"].items()} for i in (0, 1))
            audit = AuditWriter(actor, ids)
            audit.add(connection, now, "link_changed", code, application_id=application_id, before=before, after=after)
    return len(updates)


def audited_value(name: str, value: Any) -> Any:
    """Return the value of a field for the audit log. The audit log contains only the host of a URL, because the other parts may
    identify the recipient. If the URL has no host, the result is its scheme. If the text is not a URL, the result is "".

    The history of the link contains the complete URL, until the message is erased."""
    if name not in ("url", "fallback_url") or not value:
        return value
    try:
        return host_of(value) or urlsplit(value).scheme
    except ValueError:
        return ""


def _compute(
    row: AnyRow, changes: Mapping[str, Any], target: Destination | None, now: datetime
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the new values of all columns that can change. Also return [old value, new value] for each field that changes."""
    values: dict[str, Any] = {
        "url": row.url,
        "location": row.location,
        "flags": row.flags,
        "fallback_url": row.fallback_url,
        "expires_at": row.expires_at,
        "disabled_at": row.disabled_at,
    }
    differences: dict[str, list[Any]] = {}
    if target is not None and target.url != row.url:
        location = fill_placeholders(target.location, _placeholder_values(row)) if target.placeholders else target.location
        flags = row.flags & ~int(LinkFlag.FILL_CLICK_ID)
        if "click_id" in target.placeholders:
            flags |= int(LinkFlag.FILL_CLICK_ID)
        if not target.url.startswith(("http://", "https://")):
            # a link with an app scheme, such as tel:, has no query that could contain the click id
            flags &= ~int(LinkFlag.APPEND_CLICK_ID)
        text = location.decode()
        values |= {"url": target.url, "location": None if text == target.url else text, "flags": flags}
        differences["url"] = [row.url, target.url]
    if "fallback_url" in changes:
        fallback = changes["fallback_url"]
        if fallback is not None and "{" in fallback:
            fallback = fill_placeholders(fallback.encode(), _placeholder_values(row)).decode()
        if fallback != row.fallback_url:
            values["fallback_url"] = fallback
            differences["fallback_url"] = [row.fallback_url, fallback]
    if "expires_at" in changes:
        expires_at = to_utc(parse_iso(changes["expires_at"]))
        if to_ms(expires_at) != to_ms(row.expires_at):
            values["expires_at"] = expires_at
            differences["expires_at"] = [to_iso(row.expires_at), to_iso(expires_at)]
    if "enabled" in changes and changes["enabled"] != (row.disabled_at is None):
        values["disabled_at"] = None if changes["enabled"] else now
        differences["enabled"] = [row.disabled_at is None, changes["enabled"]]
    return values, differences


def _parse_stored(url: str) -> Destination:
    """Parse a destination that `parse_changes` has accepted. Its scheme may be an extra scheme of the application."""
    return parse_destination(url, (url.partition(":")[0].lower(),))


def _placeholder_values(row: AnyRow) -> dict[str, str]:
    """Return the values of the placeholders in a destination. {click_id} is not included, because a redirect replaces it."""
    return {**message_values(row.message_id, row.campaign, row.to_address), "code": row.code}


def read_history(connection: Connection, link_id: int) -> list[dict[str, Any]]:
    """Return the changes of a link as the API shows them, newest first."""
    c = link_changes.c
    rows = connection.execute(select(link_changes).where(c.link_id == link_id).order_by(c.id.desc()).limit(MAX_HISTORY_ENTRIES))
    return [
        {
            "at": to_iso(row.at),
            "by": row.actor,
            "changes": {name: {"from": old, "to": new} for name, (old, new) in row.changes.items()},
        }
        for row in rows
    ]


def read_original(connection: Connection, link_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return the original values of changed links, by the id of the link: url and expires_at (milliseconds since 1970)."""
    c = link_changes.c
    original: dict[int, dict[str, Any]] = {}
    for row in connection.execute(select(c.link_id, c.changes).where(c.link_id.in_(link_ids)).order_by(c.id)):
        values = original.setdefault(row.link_id, {})
        if "url" in row.changes:
            values.setdefault("url", row.changes["url"][0])
        if "expires_at" in row.changes:
            values.setdefault("expires_at", to_ms(to_utc(parse_iso(row.changes["expires_at"][0]))))
    return original


async def refresh_cache(database: Database, cache: LinkCache, codes: Sequence[str]) -> None:
    """Store the current values of changed links in the link cache. Disabled links are not stored in it.

    Then read the rows again. If another process has changed a link since the first read, store its latest values."""
    stored: dict[str, CachedLink | None] = {}
    for _ in range(MAX_REFRESHES):
        current = await database.read(read_cache_entries, codes)
        changed = [code for code in codes if stored.get(code, _NOTHING) != current.get(code)]
        if not changed:
            return
        enabled = [link for code in changed if (link := current.get(code)) is not None]
        await cache.replace(enabled)
        await cache.invalidate([code for code in changed if current.get(code) is None])
        stored |= {code: current.get(code) for code in changed}


async def refresh_cache_after_commit(database: Database, cache: LinkCache, codes: Sequence[str]) -> None:
    """Refresh the link cache (see `refresh_cache`) after the commit of a change. If the database is unavailable, remove the links
    from the cache instead, so that it contains no old values."""
    try:
        await refresh_cache(database, cache, codes)
    except StoreUnavailable:
        await cache.invalidate(codes)  # if Redis is unavailable, the link cache deletes the entries later


_NOTHING = object()
