"""This module writes the audit log: the actions of operators in the portal, attempts to sign in, changes of operators, keys and
tokens by the command line and the API, applications that the command line creates, erasures of personal data, and changes of links.
Rows are never changed. The purge deletes them after 400 days (retention/purge.py). A row contains the changed values before and
after the action, without secrets: no passwords, tokens, keys, codes and no unmasked phone numbers.
"""

# Tested by tests/portal/test_operators.py, tests/web/test_links.py and tests/retention/test_erasure.py

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert

from shortener.logs import mask_numbers
from shortener.storage.schema import audit_log

MAX_OBJECT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Actor:
    """The actor of an action, as the audit log names it: an operator, the command line, an API key, or a background job. Only an
    operator has an `operator_id` and a `session_id`."""

    operator_id: int | None = None
    name: str = ""
    session_id: int | None = None
    network: str = ""


COMMAND_LINE = Actor(name="command line")


def key_actor(key_id: int) -> str:
    """Return the name of the actor of changes with an API key, in the audit log and in the history of a link."""
    return f"key {key_id}"


@dataclass(frozen=True, slots=True)
class AuditWriter:
    """Adds rows to the audit log for one actor. `new_id` generates the id of each row."""

    actor: Actor
    new_id: Callable[[], int]

    def add(
        self,
        connection: Connection,
        now: datetime,
        action: str,
        subject: str = "",
        *,
        application_id: int | None = None,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a row to the audit log, in the transaction of the action itself. `action` is a verb in snake case, such as
        `operator_invited`."""
        connection.execute(
            insert(audit_log).values(
                id=self.new_id(),
                at=now,
                operator_id=self.actor.operator_id,
                operator=self.actor.name,
                session_id=self.actor.session_id,
                network=self.actor.network,
                action=action,
                application_id=application_id,
                object=mask_numbers(subject)[:MAX_OBJECT_CHARACTERS],
                before=_masked(before),
                after=_masked(after),
            )
        )


def _masked(value: Any) -> Any:
    """Return a JSON value in which all phone numbers in texts are masked, for example in the name of a campaign."""
    if isinstance(value, str):
        return mask_numbers(value)
    if isinstance(value, Mapping):
        return {name: _masked(one) for name, one in value.items()}
    return [_masked(one) for one in value] if isinstance(value, list | tuple) else value
