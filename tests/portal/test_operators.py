"""Tests of operators, roles and invitations, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from shortener.accounts.audit import Actor, AuditWriter
from shortener.container import Service
from shortener.errors import ApiError
from shortener.ids import IdGenerator
from shortener.portal import audit, operators
from shortener.portal.operators import Role
from shortener.retention.purge import purge
from shortener.settings import Settings
from shortener.storage.database import Database
from tests.conftest import NOON


async def test_an_operator_invitation_is_valid_once_and_until_it_expires(database: Database) -> None:
    created = await database.write(operators.invite, "Ada", Role.ADMIN, 0, NOON)
    later = created.expires_at + timedelta(seconds=1)
    assert await database.read(operators.find_invitation, created.token, NOON) is not None
    assert await database.read(operators.find_invitation, created.token, later) is None
    assert await database.read(operators.find_invitation, "wrong", NOON) is None
    attempts = [database.write(operators.accept, created.token, "", "hash", None, NOON) for _ in range(4)]
    accepted = await asyncio.gather(*attempts)
    assert sum(one is not None for one in accepted) == 1


async def test_a_second_invitation_replaces_the_first_one_and_an_active_operator_cannot_be_invited(database: Database) -> None:
    first = await database.write(operators.invite, "Ada", Role.VIEWER, 0, NOON)
    second = await database.write(operators.invite, "ADA", Role.MANAGER, 0, NOON)
    assert await database.read(operators.find_invitation, first.token, NOON) is None
    operator = await database.write(operators.accept, second.token, "", "hash", "Europe/Berlin", NOON)
    assert operator is not None
    assert (operator.name, operator.role_in(5), operator.time_zone) == ("Ada", Role.MANAGER, "Europe/Berlin")
    with pytest.raises(ApiError):
        await database.write(operators.invite, "ada", Role.VIEWER, 0, NOON)


async def test_an_operator_with_a_role_in_one_application_cannot_see_other_applications(service: Service) -> None:
    await service.database.write(operators.invite, "Vera", Role.SUPPORT, 1, NOON)
    vera = await service.database.read(operators.find_operator, "vera")
    assert [vera.role_in(number) for number in (0, 1, 2)] == [None, Role.SUPPORT, None]
    with pytest.raises(ApiError):
        await service.database.write(operators.invite, "Max", Role.VIEWER, 77, NOON)
    with pytest.raises(ApiError):
        operators.parse_role("admin", 1)


async def test_the_only_admin_cannot_be_disabled(database: Database) -> None:
    created = await database.write(operators.invite, "Ada", Role.ADMIN, 0, NOON)
    await database.write(operators.accept, created.token, "", "hash", None, NOON)
    with pytest.raises(ApiError):
        await database.write(operators.disable, "Ada", NOON)
    with pytest.raises(ApiError):
        await database.write(operators.revoke, created.operator_id, 0)
    other = await database.write(operators.invite, "Bo", Role.ADMIN, 0, NOON)
    await database.write(operators.accept, other.token, "", "hash", None, NOON)
    await database.write(operators.disable, "Ada", NOON)
    assert (await database.read(operators.find_operator, "Ada")).is_disabled


@pytest.mark.parametrize("change", ["disable", "revoke", "grant"])
async def test_two_admins_who_remove_each_other_at_the_same_time_leave_one_admin(database: Database, change: str) -> None:
    ids = {}
    for name in ("Ada", "Bo"):
        created = await database.write(operators.invite, name, Role.ADMIN, 0, NOON)
        await database.write(operators.accept, created.token, "", "hash", None, NOON)
        ids[name] = created.operator_id

    def remove(connection: Connection, name: str) -> None:
        if change == "disable":
            operators.disable(connection, name, NOON)
        elif change == "revoke":
            operators.revoke(connection, ids[name], 0)
        else:
            operators.grant(connection, ids[name], Role.VIEWER, 0)

    results = await asyncio.gather(*(database.write(remove, name) for name in ids), return_exceptions=True)
    assert [type(result) for result in results if result is not None] == [ApiError]
    admins = [await database.read(operators.find_operator, name) for name in ids]
    assert sum(admin.is_admin and not admin.is_disabled for admin in admins) == 1


async def test_a_grant_of_another_role_keeps_the_only_admin(database: Database) -> None:
    created = await database.write(operators.invite, "Ada", Role.ADMIN, 0, NOON)
    await database.write(operators.accept, created.token, "", "hash", None, NOON)
    with pytest.raises(ApiError, match="only admin"):
        await database.write(operators.grant, created.operator_id, Role.VIEWER, 0)
    await database.write(operators.grant, created.operator_id, Role.ADMIN, 0)
    other = await database.write(operators.invite, "Bo", Role.ADMIN, 0, NOON)
    await database.write(operators.accept, other.token, "", "hash", None, NOON)
    assert not await database.read(operators.is_only_admin, await database.read(operators.find_operator, "Ada"))
    await database.write(operators.grant, created.operator_id, Role.VIEWER, 0)
    assert await database.read(operators.is_only_admin, await database.read(operators.find_operator, "Bo"))


async def test_a_reset_does_not_enable_a_disabled_operator(database: Database) -> None:
    created = await database.write(operators.invite, "Vera", Role.VIEWER, 0, NOON)
    await database.write(operators.accept, created.token, "", "hash", None, NOON)
    await database.write(operators.disable, "Vera", NOON)
    with pytest.raises(ApiError, match="is disabled"):
        await database.write(operators.reset, "Vera", NOON)
    vera = await database.read(operators.find_operator, "Vera")
    assert (vera.is_disabled, vera.has_password) == (True, True)
    await database.write(lambda connection: operators.disable(connection, "Vera", NOON, is_disabled=False))
    invitation = await database.write(operators.reset, "Vera", NOON)
    assert await database.read(operators.find_invitation, invitation.token, NOON) is not None


async def test_an_invitation_for_the_first_admin_exists_until_an_operator_has_a_password(database: Database) -> None:
    first = await database.write(operators.invite_first, NOON)
    again = await database.write(operators.invite_first, NOON)
    assert first is not None
    assert again is not None
    operator = await database.write(operators.accept, first.token, "Ada", "hash", None, NOON)
    assert operator is not None
    assert operator.is_admin
    assert await database.read(operators.find_invitation, again.token, NOON) is None
    assert await database.write(operators.invite_first, NOON) is None


async def test_the_audit_log_is_paged_filtered_and_purged(database: Database) -> None:
    ids = IdGenerator(0, lambda: round(NOON.timestamp() * 1000))
    actor = Actor(1, "Ada", 1, "192.0.2.0")

    for number in range(5):
        await database.write(AuditWriter(actor, ids).add, NOON, "list_exported" if number % 2 else "revealed", f"m-{number}")
    page = await database.read(audit.list_audit, audit.AuditFilter(), 2)
    assert [row.object for row in page.rows] == ["m-4", "m-3"]
    rest = await database.read(audit.list_audit, audit.AuditFilter(action="revealed"), 9, page.next)
    assert [row.object for row in rest.rows] == ["m-2", "m-0"]
    for days, deleted in ((399, 0), (401, 5)):
        purged = await purge(database, Settings(), NOON + timedelta(days=days))
        assert purged.audit_log == deleted


def test_only_the_purge_deletes_rows_of_the_audit_log_and_no_code_changes_them() -> None:
    folder = Path(__file__).parents[2] / "shortener"
    users = {file.relative_to(folder).as_posix() for file in folder.rglob("*.py") if "audit_log" in file.read_text()}
    assert users - {"portal/admin_audit.py", "cli/operators.py"} == {
        "accounts/audit.py",
        "portal/audit.py",
        "retention/purge.py",
        "retention/purge_statements.py",
        "storage/schema/__init__.py",
        "storage/schema/operators.py",
        "storage/migrations/versions/v0015_operators.py",
    }
    for file in ("accounts/audit.py", "portal/audit.py"):
        code = (folder / file).read_text()
        assert "update(" not in code
        assert "delete(" not in code
