"""This module reads and writes values that the database stores about its installation, such as the fingerprint of the secret.

An installation is a database with the schema of this service, and its secret. `require_installation` raises an error if there is
no installation. Without it, a command that runs in the wrong folder would create an empty installation.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import orjson
import structlog
from sqlalchemy import Connection, select

from shortener.secret import Secret, SecretError, open_secret
from shortener.settings import Settings, is_loopback
from shortener.storage.database import Database, upsert
from shortener.storage.migrate import check, current_version
from shortener.storage.open import sqlite_path
from shortener.storage.schema import installation

log = structlog.get_logger(__name__)

#: The name under which the fingerprint of the secret is stored.
FINGERPRINT = "secret"
#: The name under which the BASE_URL of the servers is stored. A URL that works on one machine only, such as localhost, is not
#: stored.
BASE_URL = "base_url"
LARGEST_BATCH = "largest BATCH_LIMIT"


#: The name under which the former BASE_URLs are stored, as a JSON list with the latest at the end. Links that were sent with them
#: still work.
_FORMER_BASE_URLS = "former_base_urls"
MAX_FORMER_BASE_URLS = 20


class BaseUrlMissing(Exception):
    """Raised if a process has no BASE_URL although earlier processes of the installation had one. The text of the error contains
    the earlier BASE_URL."""


class NoInstallation(Exception):
    """Raised if the configured database contains no installation. The text of the error says where the database was searched and
    what to do."""


async def require_installation(settings: Settings, database: Database | None = None) -> None:
    """Raise NoInstallation if the configured database does not exist or is empty. Raise SchemaMismatch if its schema is not
    current.

    `database` is the open database, or None to open a connection for the check."""
    file = sqlite_path(settings.store_url)
    version = None if file is not None and not file.exists() else await current_version(settings.store_url, database)
    if version is None:
        raise NoInstallation(f"there is no installation in {place_of(settings)}. {_REMEDY}")
    check(version)


_REMEDY = (
    "Set SHORTENER_DATA_DIR or SHORTENER_DATABASE_URL, or change to the folder of the service. To create a new installation, run "
    "`shortener serve` or `shortener migrate`"
)


def place_of(settings: Settings) -> str:
    """Return a text for error messages that describes where the configured database is: its folder, its file, or the name and host
    of the PostgreSQL database. The text never contains the password."""
    file = sqlite_path(settings.store_url)
    if file is None:
        parts = urlsplit(settings.store_url)
        name = parts.path.removeprefix("/") or "of the user"
        return f"the PostgreSQL database {name} on {parts.netloc.rpartition('@')[2] or 'localhost'}"
    return str(settings.data_dir.absolute()) if not settings.database_url else str(file.absolute())


async def open_installation_secret(database: Database, settings: Settings, stored: str | None) -> Secret:
    """Return the secret of the installation in `database`. `stored` is the fingerprint of its secret, which the database
    contains. If `stored` is None, create a new secret.

    Raise SecretError if the secret does not exist, or if it does not belong to this database."""
    secret = open_secret(settings.secret, settings.data_dir, create=stored is None)
    if stored is None:
        stored = await database.write(get_or_set, FINGERPRINT, secret.fingerprint)
    if stored != secret.fingerprint:
        raise SecretError(
            "this database belongs to an installation with another SECRET, with which its stored secrets are encrypted. Set "
            "SHORTENER_SECRET to that secret or restore its file. If it is lost, run `shortener secret adopt`: links continue to "
            "work"
        )
    return secret


async def check_base_url(
    database: Database, settings: Settings, stored: str | None, on_change: Callable[[Connection], None] = lambda _: None
) -> None:
    """Store BASE_URL in the installation, unless it works only on this machine. `stored` is the BASE_URL that the database
    contains. If BASE_URL is another URL, `stored` becomes a former BASE_URL, and `on_change` is called in the same transaction.

    Raise BaseUrlMissing if this process has no BASE_URL but an earlier process had one. Without this check, a node whose
    configuration is incomplete would create short links with the host 127.0.0.1."""
    if settings.has_default_base_url:
        if stored is not None:
            raise BaseUrlMissing(missing_base_url(stored, settings))
    elif stored != settings.base_url and not is_loopback(urlsplit(settings.base_url).hostname or ""):
        await database.write(_change_base_url, settings.base_url, on_change)
        if stored is not None:
            log.warning("base_url_changed", former=stored, base_url=settings.base_url)


def _change_base_url(connection: Connection, url: str, on_change: Callable[[Connection], None]) -> None:
    replaced = get(connection, BASE_URL)
    set_value(connection, BASE_URL, url)
    former = [one for one in (*find_former_base_urls(connection), replaced) if one not in (None, url)]
    set_value(connection, _FORMER_BASE_URLS, orjson.dumps(list(dict.fromkeys(former))[-MAX_FORMER_BASE_URLS:]).decode())
    on_change(connection)


def find_former_base_urls(connection: Connection) -> list[str]:
    """Return the URLs that the setting BASE_URL of this installation had in the past."""
    stored = get(connection, _FORMER_BASE_URLS)
    former: list[str] = [] if stored is None else orjson.loads(stored)
    return former


async def find_largest_batch(database: Database, settings: Settings, stored: str | None) -> int:
    """Return the largest BATCH_LIMIT that the installation has had. Store it if the present BATCH_LIMIT is larger than `stored`,
    the value in the database.

    A client may repeat a request after BATCH_LIMIT was made smaller. Then a request of the former size must still be permitted."""
    default: int = type(settings).model_fields["batch_limit"].default
    known = max(int(stored or 0), default)
    if settings.batch_limit > known:
        await database.write(_raise_largest_batch, settings.batch_limit)
    return max(settings.batch_limit, known)


def _raise_largest_batch(connection: Connection, limit: int) -> None:
    if limit > int(get(connection, LARGEST_BATCH) or 0):
        set_value(connection, LARGEST_BATCH, str(limit))


def missing_base_url(stored: str, settings: Settings) -> str:
    """Return the text of the error BaseUrlMissing."""
    return (
        f"BASE_URL is not set, so links would begin with {settings.base_url}. Links of this installation begin with {stored}: set "
        f"SHORTENER_BASE_URL={stored}, or the new address"
    )


def get_all(connection: Connection) -> dict[str, str]:
    """Return all values of the installation by name."""
    return {row.name: row.value for row in connection.execute(select(installation.c.name, installation.c.value))}


def get(connection: Connection, name: str) -> str | None:
    """Return the value of the installation that is stored under `name`, or None."""
    value: str | None = connection.execute(select(installation.c.value).where(installation.c.name == name)).scalar()
    return value


def get_or_set(connection: Connection, name: str, value: str) -> str:
    """Store a value of the installation under `name` if none is stored yet. Return the stored value."""
    connection.execute(upsert(connection, installation).values(name=name, value=value).on_conflict_do_nothing())
    stored: str = connection.execute(select(installation.c.value).where(installation.c.name == name)).scalar_one()
    return stored


def set_value(connection: Connection, name: str, value: str) -> None:
    """Store a value of the installation under `name`. It replaces an earlier value."""
    row = upsert(connection, installation).values(name=name, value=value)
    connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": row.excluded.value}))
