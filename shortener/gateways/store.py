"""This module creates, reads, changes and removes gateways.

The settings of a gateway contain credentials, so they are encrypted in the database, and responses contain only the parts that are
not secret (`GatewayKind.describe`). The key in the path of a gateway's report URL is stored encrypted and hashed. Only the operator
(the command line) can permit private IP addresses and create gateways of the installation. Otherwise a customer could send requests
into the operator's network, or send messages at the operator's cost.

A removed gateway gets no messages. The dispatcher makes its waiting messages FAILED.

The functions raise ApiError with INVALID_REQUEST, FORBIDDEN_TARGET, NOT_FOUND or CONFLICT.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from pydantic import BaseModel
from sqlalchemy import Connection, Row, func, insert, select, update

from shortener.accounts.administration import lock_application
from shortener.accounts.audit import AuditWriter
from shortener.accounts.directory import Directory, hash_credential, require_application
from shortener.accounts.gateway_entries import SIMULATOR
from shortener.accounts.version import mark_accounts_changed
from shortener.delivery.guard import ForbiddenTarget, Guard, HostUnresolved
from shortener.delivery.health import EndpointHealth
from shortener.delivery.pace import EndpointPace
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.gateways.gateway import GatewayChanges, LostSettings, NewGateway, StoredGateway
from shortener.gateways.input_checks import (
    GATEWAY_LIMITS,
    check_customer_change,
    check_limits,
    check_name,
    parse_settings,
    refuse,
)
from shortener.gateways.kinds import KINDS
from shortener.gateways.setting_changes import build_preset, check_masks, merge_settings, rebuild_preset
from shortener.gateways.submission import GatewayConfig
from shortener.model import ALL_APPLICATIONS, Clock
from shortener.secret import Secret, SecretError
from shortener.settings import Settings
from shortener.storage import schema
from shortener.storage.database import Database
from shortener.storage.send_conditions import IS_PENDING

MAX_GATEWAYS = 50  # The maximum number of gateways of one application.
MAX_SETTINGS_BYTES = 64 * 1024
MAX_UPDATE_ATTEMPTS = 5  # How often the service tries to change a gateway that other requests change at the same time.
REPORT_PATH = "/api/v1/gateways/reports/{report_key}"


class GatewayStore:
    """The functions that read and change the gateways in the database.

    `application_id` None in a method means the gateways of all applications and of the installation."""

    def __init__(self, database: Database, secret: Secret, directory: Directory, settings: Settings, clock: Clock) -> None:
        self._database = database
        self._secret = secret
        self._directory = directory
        self._settings = settings
        self._clock = clock

    def disabled_applications(self) -> Collection[int]:
        """Return the ids of the disabled applications, whose messages wait."""
        return self._directory.hit_policies.disabled_applications

    async def create(self, audit: AuditWriter, application_id: int, new: NewGateway) -> StoredGateway:
        """Create a gateway of an application, or of the installation (ALL_APPLICATIONS)."""
        check_name(new.name)
        check_limits({"timeout": new.timeout, "max_per_second": new.max_per_second, "schedule": new.schedule})
        options, values = dict(new.options or {}), dict(new.settings or {})
        check_masks(values, options)
        if new.preset and new.kind != "http":
            raise refuse("preset", "is only for gateways of the kind http")
        if options and not new.preset:
            raise refuse("options", "must be combined with a preset")
        values = merge_settings(new.kind, build_preset(new.preset, options) if new.preset else {}, values)
        await self._check_target(new.kind, parse_settings(new.kind, values), new.allow_private)
        now = self._clock()
        key = new_report_key()
        row = {
            "application_id": application_id,
            "name": new.name,
            "kind": new.kind,
            "preset": new.preset,
            "settings": self._encrypt(values),
            "report_key": self._secret.encrypt(key),
            "report_key_hash": hash_credential(key),
            "enabled": new.enabled,
            "allow_private": new.allow_private,
            "on_doubt": new.on_doubt,
            "max_attempts": new.max_attempts,
            "timeout": new.timeout,
            "concurrency": new.concurrency,
            "max_per_second": new.max_per_second,
            "schedule": new.schedule,
            "created_at": now,
            "updated_at": now,
        }
        return self._from_row(await self._database.write(_insert, audit, row))

    async def get(self, gateway_id: int, application_id: int | None = None) -> StoredGateway:
        """Return a gateway. Raise ApiError NOT_FOUND."""
        return self._from_row(await self._database.read(_require, gateway_id, application_id))

    async def find(self, name: str, application_id: int) -> StoredGateway:
        """Return the gateway with this name. A gateway of the application has priority over a gateway of the installation. Raise
        ApiError NOT_FOUND."""
        return self._from_row(await self._database.read(_require_name, name, application_id))

    async def all(self, application_id: int | None = None) -> list[StoredGateway]:
        """Return the gateways of an application and the gateways of the installation, oldest first."""
        return [self._from_row(row) for row in await self._database.read(_all, application_id)]

    async def update(
        self,
        audit: AuditWriter,
        gateway_id: int,
        changes: GatewayChanges,
        application_id: int | None = None,
        *,
        is_operator: bool = False,
    ) -> StoredGateway:
        """Change a gateway. The open connections to the gateway are closed when their attempts in flight have ended.

        If a gateway may have a private IP address, only the operator can change the values that `GatewayKind.operator_values`
        returns. For all other gateways, a change of the host requires new credentials, so that stored credentials are not sent to
        another host. If another request changes the gateway at the same time, the changes are checked and merged again, so that no
        change is lost."""
        for _ in range(MAX_UPDATE_ATTEMPTS):
            row = await self._database.read(_require, gateway_id, application_id)
            values, changed_settings = await self._prepare_update(row, changes, is_operator)
            changed = await self._database.write(_update, audit, row, values, changed_settings, self._clock())
            if changed is not None:
                return self._from_row(changed)
        raise ApiError(ErrorCode.CONFLICT, "Other requests change the gateway at the same time. Repeat the request.")

    async def _prepare_update(
        self, row: Row[Any], changes: GatewayChanges, is_operator: bool
    ) -> tuple[dict[str, Any], Sequence[str]]:
        """Check the changes. Return the new column values of a gateway, and the names of its changed settings."""
        if "name" in changes:
            check_name(changes["name"])
        check_limits(changes)
        values: dict[str, Any] = {**changes}
        changed_settings: list[str] = []
        new, options = values.pop("settings", None) or {}, values.pop("options", None) or {}
        if new or options:
            check_masks(new, options)
            stored, present = self._from_row(row), self._read_settings(row)
            merged = merge_settings(row.kind, rebuild_preset(row.preset, present, options) if options else present, new)
            changed_settings = sorted(name for name in merged if present.get(name) != merged[name])
            parsed = parse_settings(row.kind, merged)
            if not is_operator:
                check_customer_change(stored, parsed, new)
            await self._check_target(row.kind, parsed, row.allow_private)
            values["settings"] = self._encrypt(merged)
        if values.pop("rotate_report_key", False):
            key = new_report_key()
            values |= {"report_key": self._secret.encrypt(key), "report_key_hash": hash_credential(key)}
        return values, changed_settings

    async def remove(self, audit: AuditWriter, gateway_id: int, application_id: int | None = None) -> None:
        """Remove a gateway. Applications that have selected it have no gateway afterwards. Raise ApiError NOT_FOUND."""
        await self._database.write(_remove, audit, gateway_id, application_id, self._clock())

    def load(self, connection: Connection, gateway_id: int) -> StoredGateway:
        """Return a gateway, even if it was removed. Raise an exception if its stored settings are unusable."""
        table = schema.gateways
        found = self._from_row(connection.execute(select(table).where(table.c.id == gateway_id)).one())
        if isinstance(found.config.settings, LostSettings):
            raise SecretError("the settings of the gateway are lost")
        return found

    def ensure_simulator(self, connection: Connection) -> int:
        """Create the built-in simulator, which all applications share, if it is missing. Replace its settings if they were removed
        because their secret is lost. Return the id of the simulator."""
        table = schema.gateways
        found = select(table.c.id, table.c.settings).where(
            table.c.application_id == ALL_APPLICATIONS, table.c.name == SIMULATOR, table.c.removed_at.is_(None)
        )
        existing = connection.execute(found).one_or_none()
        if existing is not None and existing.settings is not None:
            return int(existing.id)
        now, key = self._clock(), new_report_key()
        row = {
            "settings": self._encrypt({}),
            "report_key": self._secret.encrypt(key),
            "report_key_hash": hash_credential(key),
            "enabled": True,
            "updated_at": now,
        }
        if existing is not None:
            repaired = row | {"disabled_reason": None, "revision": table.c.revision + 1}
            connection.execute(update(table).where(table.c.id == existing.id).values(repaired))
            mark_accounts_changed(connection)
            return int(existing.id)
        row |= {"application_id": ALL_APPLICATIONS, "name": SIMULATOR, "kind": SIMULATOR, "created_at": now}
        created: int = connection.execute(insert(table).values(row).returning(table.c.id)).scalar_one()
        mark_accounts_changed(connection)
        return created

    async def _check_target(self, kind: str, settings: BaseModel, allow_private: bool) -> None:
        """Raise ApiError FORBIDDEN_TARGET if the gateway has an IP address that is not permitted."""
        target = KINDS[kind].target(settings)
        if target is None:
            return
        is_http = str(getattr(settings, "url", "")).startswith("http:")
        if is_http and not (self._settings.allow_http_targets or allow_private):
            reason = "must begin with https://; http:// is disabled (ALLOW_HTTP_TARGETS)"
            raise ApiError(ErrorCode.FORBIDDEN_TARGET, details=[Detail("url", reason)])
        try:
            await Guard(allow_private or self._settings.allow_private_targets).check_host(*target)
        except ForbiddenTarget as error:
            raise ApiError(
                ErrorCode.FORBIDDEN_TARGET, details=[Detail("url", f"{error}, or the gateway needs --allow-private")]
            ) from None
        except HostUnresolved:
            pass  # the host name may get an address later, and the guard checks every connection again

    def _encrypt(self, values: Mapping[str, Any]) -> str:
        packed = orjson.dumps(values)
        if len(packed) > MAX_SETTINGS_BYTES:
            raise refuse("settings", f"must have at most {MAX_SETTINGS_BYTES} bytes of JSON")
        return self._secret.encrypt(packed.decode())

    def _read_settings(self, row: Row[Any]) -> dict[str, Any]:
        """Return the decrypted settings of a gateway. Return an empty dict if they were removed because their secret is lost
        (storage/secret_change.py)."""
        values: dict[str, Any] = orjson.loads(self._secret.decrypt(row.settings)) if row.settings else {}
        return values

    def _from_row(self, row: Row[Any]) -> StoredGateway:
        values = self._read_settings(row)
        is_lost = row.settings is None and row.kind != SIMULATOR
        report_key = self._secret.decrypt(row.report_key) if row.report_key else "lost"
        report_path = REPORT_PATH.format(report_key=report_key)
        config = GatewayConfig(
            id=row.id,
            name=row.name,
            kind=row.kind,
            revision=row.revision,
            settings=LostSettings() if is_lost else KINDS[row.kind].settings_model.model_validate(values),
            report_url=self._settings.base_url.rstrip("/") + report_path,
            allow_private=row.allow_private,
            repeats_doubtful=row.on_doubt != "hold",
        )
        return StoredGateway(
            config=config,
            application_id=row.application_id,
            preset=row.preset,
            enabled=row.enabled,
            on_doubt=row.on_doubt,
            max_attempts=row.max_attempts,
            timeout=row.timeout,
            concurrency=row.concurrency,
            schedule=row.schedule,
            max_per_second=row.max_per_second,
            health=EndpointHealth.from_row(row),
            pace=EndpointPace.from_row(row),
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


def new_report_key() -> str:
    """Return a random key for the path of the URL that receives delivery reports."""
    return f"gr_{secrets.token_urlsafe(24)}"


def select_gateway(
    connection: Connection, audit: AuditWriter, application_id: int, name: str | None, now: datetime, *, is_operator: bool
) -> None:
    """Select the gateway that sends the messages of an application, and add the audit row. None or "none" means no gateway.

    Only the operator can select a gateway of the installation. The simulator is an exception. Raise ApiError with the code
    NOT_FOUND or INVALID_REQUEST."""
    table = schema.applications
    application = lock_application(connection, application_id)
    gateway_id = None
    if name and name != "none":
        try:
            row = _require_name(connection, name, application_id)
        except ApiError:
            raise refuse("gateway", f"must be none, {SIMULATOR} or the name of a gateway of the application") from None
        if row.application_id == ALL_APPLICATIONS and row.name != SIMULATOR and not is_operator:
            raise refuse(
                "gateway", "must be a gateway of the application; only the operator can select a gateway of the installation"
            )
        gateway_id = row.id
    connection.execute(update(table).where(table.c.id == application_id).values(gateway_id=gateway_id))
    before, after = ({"gateway": gateway_name(connection, one)} for one in (application.gateway_id, gateway_id))
    audit.add_differences(connection, now, "settings_changed", application.name, before, after, application_id=application_id)
    mark_accounts_changed(connection)


def gateway_name(connection: Connection, gateway_id: int | None) -> str:
    """Return the name of a gateway. Return "none" if there is no gateway, or if the gateway was removed."""
    table = schema.gateways
    found = select(table.c.name).where(table.c.id == gateway_id, table.c.removed_at.is_(None))
    return connection.execute(found).scalar() or "none"


def _add_row(
    connection: Connection, audit: AuditWriter, now: datetime, action: str, row: Row[Any], after: Mapping[str, Any] | None = None
) -> None:
    """Add a row about a gateway to the audit log."""
    audit.add(connection, now, action, _subject(row), application_id=row.application_id, after=after)


def _subject(row: Row[Any]) -> str:
    return f"gateway {row.id} {row.name}"


def _insert(connection: Connection, audit: AuditWriter, row: Mapping[str, Any]) -> Row[Any]:
    """Create a gateway, add the audit row, and return the row of the gateway."""
    table = schema.gateways
    owner = row["application_id"]
    # Until this transaction ends, other changes of accounts wait, so that two gateways cannot get the same name at the same time.
    mark_accounts_changed(connection)
    if owner != ALL_APPLICATIONS:
        require_application(connection, owner)
    present = connection.execute(
        select(func.count()).where(table.c.application_id == owner, table.c.removed_at.is_(None))
    ).scalar_one()
    if present >= MAX_GATEWAYS:
        raise ApiError(ErrorCode.CONFLICT, f"There are already {MAX_GATEWAYS} gateways, which is the maximum.")
    _check_unused(connection, owner, row["name"])
    created = connection.execute(insert(table).values(row).returning(table)).one()
    facts = {"kind": created.kind, "preset": created.preset, "enabled": created.enabled, "allow_private": created.allow_private}
    _add_row(connection, audit, created.created_at, "gateway_created", created, facts)
    return created


def _check_unused(connection: Connection, owner: int, name: str, gateway_id: int | None = None) -> None:
    table = schema.gateways
    same = select(table.c.id).where(table.c.application_id == owner, table.c.name == name, table.c.removed_at.is_(None))
    if connection.execute(same).scalar() not in (None, gateway_id):
        raise ApiError(ErrorCode.CONFLICT, f"A gateway with the name {name!r} already exists.")


def _require(connection: Connection, gateway_id: int, application_id: int | None) -> Row[Any]:
    table = schema.gateways
    statement = select(table).where(table.c.id == gateway_id, table.c.removed_at.is_(None))
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    row = connection.execute(statement).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no gateway {gateway_id}.")
    return row


def _require_name(connection: Connection, name: str, application_id: int) -> Row[Any]:
    table = schema.gateways
    owners = [application_id, ALL_APPLICATIONS]
    statement = select(table).where(table.c.name == name, table.c.application_id.in_(owners), table.c.removed_at.is_(None))
    row = connection.execute(statement.order_by(table.c.application_id.desc()).limit(1)).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no gateway {name!r}.")
    return row


def _all(connection: Connection, application_id: int | None) -> list[Row[Any]]:
    table = schema.gateways
    statement = select(table).where(table.c.removed_at.is_(None)).order_by(table.c.id)
    if application_id is not None:
        statement = statement.where(table.c.application_id == application_id)
    return list(connection.execute(statement).all())


#: The columns of `gateways` whose changes are written to the audit log with their values.
_AUDITED = ("name", "enabled", *GATEWAY_LIMITS)


def _update(
    connection: Connection,
    audit: AuditWriter,
    row: Row[Any],
    values: dict[str, Any],
    changed_settings: Sequence[str],
    now: datetime,
) -> Row[Any] | None:
    """Change a gateway, add the audit row, and return the row of the gateway. The audit row contains only the names of the changed
    settings, because their values can be credentials. If the gateway was changed after `row` was read, change nothing and return
    None."""
    table = schema.gateways
    mark_accounts_changed(connection)  # other changes of accounts wait (see `_insert`)
    _require(connection, row.id, row.application_id)
    if "name" in values:
        _check_unused(connection, row.application_id, values["name"], row.id)
    # A gateway that is enabled again, or has new settings such as another URL, starts with a closed circuit breaker. If a script
    # sends `enabled` again for an enabled gateway, this does not mean that the endpoint works again.
    is_enabled_again = values.get("enabled") and not row.enabled
    if is_enabled_again or changed_settings:
        values = {**values, "failures_in_row": 0, "open_until": None, "opened_at": None}
    new = {**values, "revision": table.c.revision + 1, "updated_at": now}
    is_unchanged = table.c.id == row.id, table.c.revision == row.revision
    changed = connection.execute(update(table).where(*is_unchanged).values(new).returning(table)).first()
    if changed is None:
        return None
    before: dict[str, Any] = {name: getattr(row, name) for name in _AUDITED} | {"settings": "", "report_key": ""}
    after: dict[str, Any] = {name: getattr(changed, name) for name in _AUDITED}
    after |= {"settings": f"changed: {', '.join(changed_settings)}" if changed_settings else ""}
    after |= {"report_key": "replaced" if "report_key" in values else ""}
    audit.add_differences(connection, now, "gateway_changed", _subject(row), before, after, application_id=row.application_id)
    return changed


def waiting_messages(connection: Connection, gateway_id: int) -> int:
    """Return the number of messages that wait for a gateway."""
    sends = schema.sends
    waiting = select(func.count()).select_from(sends).where(sends.c.gateway_id == gateway_id, IS_PENDING)
    return connection.execute(waiting).scalar_one()


def using_applications(connection: Connection, gateway_id: int) -> list[tuple[int, str]]:
    """Return the id and the name of each application that has selected a gateway."""
    c = schema.applications.c
    found = connection.execute(select(c.id, c.name).where(c.gateway_id == gateway_id).order_by(c.id))
    return [(row.id, row.name) for row in found]


def require_removable(application_id: int, name: str) -> None:
    """Raise ApiError CONFLICT if this gateway is the built-in simulator, which all applications share."""
    if application_id == ALL_APPLICATIONS and name == SIMULATOR:
        raise ApiError(ErrorCode.CONFLICT, "The built-in simulator cannot be removed.")


def _remove(connection: Connection, audit: AuditWriter, gateway_id: int, application_id: int | None, now: datetime) -> None:
    mark_accounts_changed(connection)  # other changes of accounts wait, so that a gateway is removed only once
    row = _require(connection, gateway_id, application_id)
    require_removable(row.application_id, row.name)
    table = schema.gateways
    # Applications keep the id, so that the warning NOT_SENT can name the removed gateway.
    connection.execute(update(table).where(table.c.id == gateway_id).values(removed_at=now, revision=table.c.revision + 1))
    _add_row(connection, audit, now, "gateway_removed", row)
