"""GET /portal/admin/operators: the page on which admins manage operators, their roles, invitations and sessions.

To make a change, an admin must have entered the password within the last ten minutes. The audit log contains each change. An
invitation link is shown only once, in the response to the form that creates it. If the same form is sent again, it creates no
second link (`repeats.py`).
"""

# Tested by tests/portal/test_admin_operators.py

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from shortener.accounts.directory import require_application
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import parse_counted_id
from shortener.model import ALL_APPLICATIONS
from shortener.portal import operators, sessions
from shortener.portal.destructive_actions import Question, ask, is_confirmed
from shortener.portal.invitation_url import link
from shortener.portal.listing import download_short_list
from shortener.portal.operators import Invitation, Operator, Role, parse_role
from shortener.portal.page import NavigationItem, PortalPage, Visit
from shortener.portal.repeats import new_form_id, perform_once
from shortener.portal.sessions import OperatorSession
from shortener.storage.types import to_iso

PATH = "/portal/admin/operators"
_ONE = f"{PATH}/{{id}}"
_CSV_COLUMNS = ("name", "roles", "state", "second_factor", "created_at", "last_sign_in_at")


async def index(visit: Visit) -> Response:
    """Return the page that lists all operators and has a form for an invitation. For the CSV path, return the operators as
    CSV."""
    if visit.is_csv:
        listed = await visit.service.database.read(operators.list_operators)
        return await download_short_list(visit, "operators", _CSV_COLUMNS, [_csv_row(one) for one in listed])
    return await _list_page(visit)


def _csv_row(operator: Operator) -> dict[str, Any]:
    """Return the CSV columns of an operator. A role in the whole installation is written as its name (`admin`). A role in one
    application also has the application's id (`viewer:1`)."""
    return {
        "name": operator.name,
        "roles": [
            role.label if application == ALL_APPLICATIONS else f"{role.label}:{application}"
            for application, role in operator.roles.items()
        ],
        "state": "disabled" if operator.is_disabled else "active" if operator.has_password else "invited",
        "second_factor": operator.has_second_factor,
        "created_at": to_iso(operator.created_at),
        "last_sign_in_at": to_iso(operator.last_sign_in_at),
    }


async def _list_page(
    visit: Visit,
    status: int = 200,
    *,
    error: ApiError | None = None,
    invitation: Invitation | None = None,
    listed: Sequence[Operator] | None = None,
) -> Response:
    """Return the page with the list of operators. `listed` contains the operators; if it is None, read all from the database."""
    if listed is None:
        listed = await visit.service.database.read(operators.list_operators)
    return visit.render(
        "admin_operators.html",
        status,
        compress=invitation is None,
        title="Operators",
        operators=listed,
        error=error,
        invitation=invitation,
        link=None if invitation is None else link(visit.portal.origin, invitation.token),
        applications=visit.service.directory.applications(),
        role_names=operators.ROLE_NAMES,
        form_id=new_form_id(),
    )


async def invite(visit: Visit) -> Response:
    """Create an operator. The response shows the invitation link, once."""
    form = visit.form
    try:
        application_id = _application_id(visit)
        role = parse_role(form.get("role", ""), application_id)

        def write(connection: Connection) -> tuple[Invitation, list[Operator]]:
            created = operators.invite(connection, form.get("name", ""), role, application_id, visit.now)
            visit.audit(connection, "operator_invited", created.name, after={"role": role.label, "application_id": application_id})
            # Read the list for the page in this transaction. A read after the commit could fail, and then nobody would see the
            # new invitation link.
            return created, operators.list_operators(connection)

        invitation, listed = await visit.service.database.write(perform_once, visit, write)
    except ApiError as error:
        return await _list_page(visit, 422, error=error)
    return await _list_page(visit, invitation=invitation, listed=listed)


def _application_id(visit: Visit) -> int:
    application_id = parse_counted_id(visit.form.get("application", "0"))
    if application_id is None:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("application", "must be the number of an application")])
    return application_id


async def show(visit: Visit) -> Response:
    """Show one operator with their roles and sessions."""
    return await _operator_page(visit)


async def _operator_page(visit: Visit, status: int = 200, *, error: ApiError | None = None) -> Response:
    return _render_operator(visit, *await visit.service.database.read(_read_operator, visit), status, error=error)


def _render_operator(
    visit: Visit,
    operator: Operator,
    listed: Sequence[OperatorSession],
    status: int = 200,
    *,
    error: ApiError | None = None,
    invitation: Invitation | None = None,
) -> Response:
    """Return the page of one operator. `listed` are the operator's sessions."""
    return visit.render(
        "admin_operator.html",
        status,
        compress=invitation is None,
        title=operator.name,
        shown=operator,
        sessions=listed,
        error=error,
        invitation=invitation,
        link=None if invitation is None else link(visit.portal.origin, invitation.token),
        applications=visit.service.directory.applications(),
        names={one.id: one.name for one in visit.service.directory.applications()},
        role_names=operators.ROLE_NAMES,
        saved=visit.get("saved") is not None,
    )


def _find(connection: Connection, visit: Visit) -> Operator:
    """Return the operator whose id is in the URL path. Raise ApiError NOT_FOUND if there is none."""
    operator_id = parse_counted_id(visit.path["id"])
    found = None if operator_id is None else operators.load_operator(connection, operator_id)
    if found is None:
        raise ApiError(ErrorCode.NOT_FOUND)
    return found


def _read_operator(connection: Connection, visit: Visit) -> tuple[Operator, Sequence[OperatorSession]]:
    """Return the operator whose id is in the URL path, and their sessions."""
    operator = _find(connection, visit)
    return operator, sessions.list_sessions(connection, operator.id, visit.now, visit.portal.limits)


async def change(visit: Visit) -> Response:
    """Change one operator. The form field `action` contains the name of the change."""
    operator = await visit.service.database.read(_find, visit)
    action = _ACTIONS.get(visit.form.get("action", ""))
    if action is None:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("action", f"must be one of {', '.join(_ACTIONS)}")])
    name = visit.form["action"]

    def write(connection: Connection) -> tuple[Invitation, Operator, Sequence[OperatorSession]] | None:
        result = perform_once(connection, visit, action, visit, operator)
        # Read the sessions for the page in this transaction. A read after the commit could fail, and then nobody would see the
        # new invitation link.
        return (result, *_read_operator(connection, visit)) if isinstance(result, Invitation) else None

    try:
        if (describe := _QUESTIONS.get(name)) is not None and not is_confirmed(visit):
            return ask(visit, describe(visit, operator), f"{PATH}/{operator.id}")
        invited = await visit.service.database.write(write)
    except ApiError as error:
        return await _operator_page(visit, 422, error=error)
    if invited is not None:
        invitation, shown, listed = invited
        return _render_operator(visit, shown, listed, invitation=invitation)
    return visit.redirect(f"{PATH}/{operator.id}?saved=1")


def _grant(connection: Connection, visit: Visit, operator: Operator) -> None:
    application_id = _application_id(visit)
    role = parse_role(visit.form.get("role", ""), application_id)
    if application_id != ALL_APPLICATIONS:
        require_application(connection, application_id)
    before = operator.roles.get(application_id)
    operators.grant(connection, operator.id, role, application_id)
    # End all sessions of the operator, so that a session that began with the old role never gets the rights of the new role.
    sessions.end_sessions(connection, operator.id, visit.session.id if visit.session else None)
    visit.audit(
        connection,
        "role_granted",
        operator.name,
        before={"role": before.label if before else None, "application_id": application_id},
        after={"role": role.label, "application_id": application_id},
    )


def _remove_role(connection: Connection, visit: Visit, operator: Operator) -> None:
    application_id = _application_id(visit)
    operators.revoke(connection, operator.id, application_id)
    sessions.end_sessions(connection, operator.id, visit.session.id if visit.session else None)
    visit.audit(connection, "role_removed", operator.name, before={"application_id": application_id})


def _disable(connection: Connection, visit: Visit, operator: Operator) -> None:
    operators.disable(connection, operator.name, visit.now)
    visit.audit(connection, "operator_disabled", operator.name)


def _enable(connection: Connection, visit: Visit, operator: Operator) -> None:
    operators.disable(connection, operator.name, visit.now, is_disabled=False)
    visit.audit(connection, "operator_enabled", operator.name)


def _reset(connection: Connection, visit: Visit, operator: Operator) -> Invitation:
    # The portal does not reset the only admin: if the new link was lost, nobody could sign in to create another one. The command
    # line can reset the only admin.
    operators.require_other_admin(connection, operator)
    invitation = operators.reset(connection, operator.name, visit.now)
    visit.audit(connection, "operator_reset", operator.name)
    return invitation


def _end_sessions(connection: Connection, visit: Visit, operator: Operator) -> None:
    own = visit.session.id if visit.session else None
    ended = sessions.end_sessions(connection, operator.id, own)
    visit.audit(connection, "sessions_ended", operator.name, after={"ended": ended})


_ACTIONS: dict[str, Callable[[Connection, Visit, Operator], Any]] = {
    "grant": _grant,
    "remove_role": _remove_role,
    "disable": _disable,
    "enable": _enable,
    "reset": _reset,
    "end_sessions": _end_sessions,
}


def _describe_disabling(visit: Visit, operator: Operator) -> Question:
    effects = (
        "All sessions of this operator end at once, and the operator cannot sign in any more. An open invitation becomes invalid.",
        "The roles stay. You can enable the operator again at any time.",
    )
    return Question(f"Disable {operator.name}?", effects, "Disable")


def _describe_reset(visit: Visit, operator: Operator) -> Question:
    """Return the question before the reset of an operator. Raise ApiError CONFLICT if the operator is disabled."""
    operators.require_enabled(operator)
    effects = (
        "The password, the second factor and the recovery codes are deleted, and all sessions of this operator end at once.",
        "The operator can sign in again only with the link that the next page shows. Earlier links become invalid.",
    )
    return Question(f"Reset {operator.name}?", effects, "Reset", "rotate-ccw")


def _describe_role_removal(visit: Visit, operator: Operator) -> Question:
    """Return the question before a role is removed. Raise ApiError CONFLICT if the operator does not have the role."""
    application_id = _application_id(visit)
    role = operator.roles.get(application_id)
    if role is None:
        raise ApiError(ErrorCode.CONFLICT, f"{operator.name!r} does not have this role any more.")
    found = visit.service.directory.application(application_id)
    where = "for all applications" if application_id == ALL_APPLICATIONS else f"in {found.name if found else application_id}"
    others = len(operator.roles) - 1
    left = "no other role" if not others else "1 other role" if others == 1 else f"{others} other roles"
    effects = (
        f"{operator.name} has {left}. Without a role in an application, an operator cannot see the pages of the application.",
        f"{_sessions_of(visit, operator)} end at once.",
    )
    return Question(f"Remove the role {role.label} {where} from {operator.name}?", effects, "Remove", fields=("application",))


def _describe_end_of_sessions(visit: Visit, operator: Operator) -> Question:
    effects = (
        f"{_sessions_of(visit, operator)} end at once. Anything typed into forms that are open in these sessions is lost.",
        "The operator can sign in again with the current password.",
    )
    return Question(f"End all sessions of {operator.name}?", effects, "End all sessions", "log-out")


def _sessions_of(visit: Visit, operator: Operator) -> str:
    is_own = visit.operator.id == operator.id
    return "All sessions of this operator except this one" if is_own else "All sessions of this operator"


#: The actions that an admin must confirm. The function of each action returns the question on the confirmation page.
_QUESTIONS: dict[str, Callable[[Visit, Operator], Question]] = {
    "disable": _describe_disabling,
    "reset": _describe_reset,
    "remove_role": _describe_role_removal,
    "end_sessions": _describe_end_of_sessions,
}

PAGES = [
    PortalPage(
        PATH,
        index,
        invite,
        role=Role.ADMIN,
        csv=True,
        needs_recent_password=True,
        navigation=NavigationItem("Operators", "users", 20, "installation"),
    ),
    PortalPage(_ONE, show, change, role=Role.ADMIN, needs_recent_password=True),
]
