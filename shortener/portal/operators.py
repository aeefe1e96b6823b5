"""This module manages operators (the people who may use the portal), their roles and their invitations. An operator is created by
an invitation: a link with a random token that can be used once. The database stores only a hash of the token. The link leads to
the welcome page, and its form sets the password of the operator. Opening the link alone changes nothing. Without an invitation,
nobody can become an operator.

Call functions with the parameter `connection` in a transaction (`Database.write` or `Database.read`). They raise ApiError with
the codes CONFLICT, NOT_FOUND and INVALID_REQUEST.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Mapping
from dataclasses import field
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import Connection, delete, func, insert, select, update

from shortener.accounts.directory import hash_credential, require_application
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.model import ALL_APPLICATIONS, record
from shortener.storage.database import upsert
from shortener.storage.schema import operator_invitations, operator_recovery_codes, operator_roles, operator_sessions, operators

MAX_NAME_CHARACTERS = 60
INVITATION_LIFETIME = timedelta(hours=72)
FIRST_INVITATION_LIFETIME = timedelta(minutes=15)

Theme = Literal["system", "light", "dark"]
THEMES: tuple[Theme, ...] = get_args(Theme)


class Role(enum.IntEnum):
    """A role: the rights of an operator in an application. Each role includes the rights of all lower roles.

    VIEWER sees figures and lists with masked phone numbers. SUPPORT may reveal numbers and replay deliveries; both are audited.
    MANAGER changes trackers, links, keys and settings. ADMIN exists for the whole installation only, and also manages operators.
    """

    VIEWER = 1
    SUPPORT = 2
    MANAGER = 3
    ADMIN = 4

    @property
    def label(self) -> str:
        """The name of the role in lower case, as the command line uses it and the database stores it."""
        return self.name.lower()


ROLE_NAMES = tuple(role.label for role in Role)


@record
class Operator:
    """An operator of the portal. `roles` maps application ids to roles; ALL_APPLICATIONS means every application."""

    id: int
    name: str
    roles: Mapping[int, Role] = field(default_factory=dict)
    has_password: bool = True
    has_second_factor: bool = False
    is_disabled: bool = False
    theme: Theme = "system"
    time_zone: str | None = None
    has_shortcuts: bool = True
    created_at: datetime | None = None
    last_sign_in_at: datetime | None = None

    @property
    def is_admin(self) -> bool:
        """Whether the operator may manage the installation."""
        return self.roles.get(ALL_APPLICATIONS) is Role.ADMIN

    def role_in(self, application_id: int) -> Role | None:
        """Return the operator's role in an application. Return None if the operator has no role there; then the operator must not
        learn that the application exists.

        `application_id` may be ALL_APPLICATIONS."""
        found = [self.roles[one] for one in (ALL_APPLICATIONS, application_id) if one in self.roles]
        return max(found) if found else None


@record
class Invitation:
    """A new invitation. `token` is the secret part of the link, which is not stored."""

    operator_id: int
    name: str
    role: Role
    token: str
    expires_at: datetime


def parse_role(name: str, application_id: int) -> Role:
    """Return the role with this name. Raise ApiError INVALID_REQUEST if the name is unknown, or if `admin` is requested for a
    single application."""
    if name not in ROLE_NAMES:
        raise _invalid("role", f"must be one of {', '.join(ROLE_NAMES)}")
    role = Role[name.upper()]
    if role is Role.ADMIN and application_id != ALL_APPLICATIONS:
        raise _invalid("role", "must not be admin together with an application, because an admin manages the whole installation")
    return role


def invite(
    connection: Connection,
    name: str,
    role: Role,
    application_id: int,
    now: datetime,
    *,
    lifetime: timedelta = INVITATION_LIFETIME,
    may_rename: bool = False,
) -> Invitation:
    """Create an operator and an invitation. If the operator exists but has not accepted an invitation yet, create only a new
    invitation.

    Raise ApiError CONFLICT if the operator already has a password, or NOT_FOUND if the application does not exist."""
    name = check_name(name)
    if application_id != ALL_APPLICATIONS:
        require_application(connection, application_id)
    row = connection.execute(select(operators).where(operators.c.name_key == name.casefold())).first()
    if row is not None and (row.password_hash is not None or row.disabled_at is not None):
        raise ApiError(
            ErrorCode.CONFLICT,
            f"There is already an operator {row.name!r}. `shortener operators grant` changes roles, and "
            "`shortener operators reset` creates a new invitation for an operator who lost the password. "
            "`shortener operators disable --enable` enables a disabled operator.",
        )
    if row is None:
        created = connection.execute(
            insert(operators).values(name=name, name_key=name.casefold(), created_at=now).returning(operators.c.id)
        )
        operator_id = created.scalar_one()
    else:
        operator_id, name = row.id, row.name
    grant(connection, operator_id, role, application_id)
    token = _new_invitation(connection, operator_id, now, lifetime, may_rename=may_rename)
    return Invitation(operator_id, name, role, token, now + lifetime)


def invite_first(connection: Connection, now: datetime) -> Invitation | None:
    """Create the invitation for the first admin. Return None if an operator already has a password, or if an operator was already
    invited on the command line."""
    if connection.execute(select(operators.c.id).where(operators.c.password_hash.is_not(None)).limit(1)).first():
        return None
    open_invitation = select(operator_invitations.c.operator_id).where(operator_invitations.c.may_rename.is_(True))
    row = connection.execute(select(operators.c.name).where(operators.c.id.in_(open_invitation))).first()
    if row is None and connection.execute(select(operators.c.id).limit(1)).first():
        return None  # An administrator has invited an operator on the command line.
    name = "admin" if row is None else row.name
    return invite(connection, name, Role.ADMIN, ALL_APPLICATIONS, now, lifetime=FIRST_INVITATION_LIFETIME, may_rename=True)


def reset(connection: Connection, name: str, now: datetime) -> Invitation:
    """Remove the password, the second factor and the sessions of an operator, and return a new invitation. Raise ApiError
    NOT_FOUND if the operator does not exist. Raise ApiError CONFLICT if the operator is disabled, because a new invitation would
    give access again."""
    operator = find_operator(connection, name)
    require_enabled(operator)
    changed = update(operators).where(operators.c.id == operator.id)
    connection.execute(changed.values(password_hash=None, totp_secret=None, totp_step=None))
    connection.execute(delete(operator_recovery_codes).where(operator_recovery_codes.c.operator_id == operator.id))
    connection.execute(delete(operator_sessions).where(operator_sessions.c.operator_id == operator.id))
    token = _new_invitation(connection, operator.id, now, INVITATION_LIFETIME)
    role = max(operator.roles.values(), default=Role.VIEWER)
    return Invitation(operator.id, operator.name, role, token, now + INVITATION_LIFETIME)


def disable(connection: Connection, name: str, now: datetime, *, is_disabled: bool = True) -> Operator:
    """Disable or enable an operator. A disabled operator has no sessions and no invitation. Raise ApiError NOT_FOUND if the
    operator does not exist, or CONFLICT if the only admin would be disabled."""
    operator = find_operator(connection, name)
    if is_disabled:
        require_other_admin(connection, operator)
        connection.execute(delete(operator_sessions).where(operator_sessions.c.operator_id == operator.id))
        connection.execute(delete(operator_invitations).where(operator_invitations.c.operator_id == operator.id))
    values = {"disabled_at": now if is_disabled else None}
    connection.execute(update(operators).where(operators.c.id == operator.id).values(values))
    return operator


def grant(connection: Connection, operator_id: int, role: Role, application_id: int) -> None:
    """Set the role of an operator in an application. Raise ApiError CONFLICT if the installation would then have no admin."""
    if application_id == ALL_APPLICATIONS and role is not Role.ADMIN:
        operator = load_operator(connection, operator_id)
        if operator is not None:
            require_other_admin(connection, operator)
    values = {"operator_id": operator_id, "application_id": application_id, "role": role.label}
    statement = upsert(connection, operator_roles).values(values)
    connection.execute(statement.on_conflict_do_update(index_elements=["operator_id", "application_id"], set_={"role": role.label}))


def revoke(connection: Connection, operator_id: int, application_id: int) -> None:
    """Remove the role of an operator in an application. Raise ApiError CONFLICT if the installation would then have no admin."""
    operator = load_operator(connection, operator_id)
    if operator is not None and application_id == ALL_APPLICATIONS:
        require_other_admin(connection, operator)
    of_operator = operator_roles.c.operator_id == operator_id
    connection.execute(delete(operator_roles).where(of_operator, operator_roles.c.application_id == application_id))


def require_enabled(operator: Operator) -> None:
    """Raise ApiError CONFLICT if this operator is disabled."""
    if operator.is_disabled:
        raise ApiError(ErrorCode.CONFLICT, f"{operator.name!r} is disabled. Enable the operator before the reset.")


def require_other_admin(connection: Connection, operator: Operator) -> None:
    """Raise ApiError CONFLICT if this operator is the only admin with a password.

    The rows of all admins stay locked until the transaction ends. Without the lock, two admins could disable each other at the
    same time on PostgreSQL, and no admin would be left."""
    of_admins = (operator_roles.c.application_id == ALL_APPLICATIONS, operator_roles.c.role == Role.ADMIN.label)
    admins = select(operators.c.id).where(operators.c.id.in_(select(operator_roles.c.operator_id).where(*of_admins)))
    connection.execute(admins.order_by(operators.c.id).with_for_update())
    if is_only_admin(connection, operator):
        raise ApiError(ErrorCode.CONFLICT, f"{operator.name!r} is the only admin. Invite another admin first.")


def is_only_admin(connection: Connection, operator: Operator) -> bool:
    """Return whether this operator is the only admin with a password."""
    if not operator.is_admin or operator.is_disabled or not operator.has_password:
        return False
    others = select(func.count()).where(
        operator_roles.c.operator_id == operators.c.id,
        operator_roles.c.application_id == ALL_APPLICATIONS,
        operator_roles.c.role == Role.ADMIN.label,
        operators.c.id != operator.id,
        operators.c.password_hash.is_not(None),
        operators.c.disabled_at.is_(None),
    )
    return bool(connection.execute(others).scalar_one() == 0)


def _new_invitation(
    connection: Connection, operator_id: int, now: datetime, lifetime: timedelta, *, may_rename: bool = False
) -> str:
    token = secrets.token_urlsafe(32)
    # A new invitation replaces earlier invitations of the operator. The invitation of the first admin (`may_rename`) replaces
    # none: several nodes may create one at the same time, and all of them stay valid until one is accepted.
    if not may_rename:
        connection.execute(delete(operator_invitations).where(operator_invitations.c.operator_id == operator_id))
    connection.execute(
        insert(operator_invitations).values(
            operator_id=operator_id,
            hash=hash_credential(token),
            may_rename=may_rename,
            created_at=now,
            expires_at=now + lifetime,
        )
    )
    return token


@record
class OpenInvitation:
    """An invitation that can still be used: it was not accepted and has not expired."""

    id: int
    operator: Operator
    may_rename: bool


def find_invitation(connection: Connection, token: str, now: datetime) -> OpenInvitation | None:
    """Return the open invitation with this token, or None. This does not use up the invitation."""
    table = operator_invitations.c
    row = connection.execute(
        select(operator_invitations).where(
            table.hash == hash_credential(token.strip()), table.used_at.is_(None), table.expires_at > now
        )
    ).first()
    operator = None if row is None else load_operator(connection, row.operator_id)
    if row is None or operator is None or operator.is_disabled:
        return None
    return OpenInvitation(row.id, operator, row.may_rename)


def accept(
    connection: Connection, token: str, name: str, password_hash: str, time_zone: str | None, now: datetime
) -> Operator | None:
    """Accept an invitation: set the password of the operator, and make the invitation invalid. Return None if the invitation was
    already used or has expired.

    Raise ApiError CONFLICT if another operator has the chosen name."""
    found = find_invitation(connection, token, now)
    if found is None:
        return None
    used = update(operator_invitations).where(operator_invitations.c.id == found.id, operator_invitations.c.used_at.is_(None))
    if not connection.execute(used.values(used_at=now)).rowcount:
        return None  # Another request has just used the invitation.
    others = operator_invitations.c.operator_id == found.operator.id, operator_invitations.c.id != found.id
    connection.execute(delete(operator_invitations).where(*others))
    values: dict[str, Any] = {"password_hash": password_hash, "password_changed_at": now}
    if time_zone is not None:
        values["time_zone"] = time_zone
    if found.may_rename:
        name = check_name(name)
        other = select(operators.c.id).where(operators.c.name_key == name.casefold(), operators.c.id != found.operator.id)
        if connection.execute(other).first():
            raise ApiError(ErrorCode.CONFLICT, f"There is already an operator {name!r}. Choose another name.")
        values |= {"name": name, "name_key": name.casefold()}
    connection.execute(update(operators).where(operators.c.id == found.operator.id).values(values))
    return load_operator(connection, found.operator.id)


def load_operator(connection: Connection, operator_id: int) -> Operator | None:
    """Return the operator with this id, or None."""
    row = connection.execute(select(operators).where(operators.c.id == operator_id)).first()
    return None if row is None else _operator(row, _roles(connection, operator_id).get(operator_id, {}))


def find_operator(connection: Connection, name: str) -> Operator:
    """Return the operator with this name; upper and lower case make no difference. Raise ApiError NOT_FOUND if there is none."""
    row = connection.execute(select(operators).where(operators.c.name_key == name.strip().casefold())).first()
    if row is None:
        raise ApiError(ErrorCode.NOT_FOUND, f"There is no operator {name!r}.")
    return _operator(row, _roles(connection, row.id).get(row.id, {}))


def list_operators(connection: Connection) -> list[Operator]:
    """Return all operators, by name."""
    roles = _roles(connection)
    rows = connection.execute(select(operators).order_by(operators.c.name_key))
    return [_operator(row, roles.get(row.id, {})) for row in rows]


def _roles(connection: Connection, operator_id: int | None = None) -> dict[int, dict[int, Role]]:
    statement = select(operator_roles).order_by(operator_roles.c.operator_id, operator_roles.c.application_id)
    if operator_id is not None:
        statement = statement.where(operator_roles.c.operator_id == operator_id)
    found: dict[int, dict[int, Role]] = {}
    for row in connection.execute(statement):
        # After a downgrade, the database can contain a role that this release does not know. Such a role gives the operator no
        # rights.
        if row.role in ROLE_NAMES:
            found.setdefault(row.operator_id, {})[row.application_id] = Role[row.role.upper()]
    return found


def _operator(row: Any, roles: Mapping[int, Role]) -> Operator:
    return Operator(
        id=row.id,
        name=row.name,
        roles=roles,
        has_password=row.password_hash is not None,
        has_second_factor=row.totp_secret is not None,
        is_disabled=row.disabled_at is not None,
        theme=row.theme if row.theme in THEMES else "system",
        time_zone=row.time_zone,
        has_shortcuts=row.shortcuts,
        created_at=row.created_at,
        last_sign_in_at=row.last_sign_in_at,
    )


def check_name(name: str) -> str:
    """Return the name of an operator without surrounding spaces. Raise ApiError INVALID_REQUEST if it is not a valid name."""
    name = name.strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise _invalid("name", f"must have 1 to {MAX_NAME_CHARACTERS} printable characters")
    return name


def _invalid(field_name: str, reason: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_REQUEST, details=[Detail(field_name, reason)])
