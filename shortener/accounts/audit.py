"""This module writes the audit log. The log contains what people have changed in an installation with the portal, the API or the
command line. It also contains attempts to sign in to the portal, and each view of personal data in the portal. It does not
contain traffic: messages, delivery reports, clicks, conversions and replies.

A change and its row in the audit log are written in one transaction. Every function that performs a change for a person therefore
has an `AuditWriter` as a parameter. A change in many transactions, such as the replay of all dead deliveries, has one row, in the
first of them. `tests/test_audit_complete.py` examines all calls of the API and all commands.

Rows are never changed. The purge deletes them after 400 days (retention/purge.py). A row contains the changed values before and
after the action. It contains no passwords, tokens, keys or codes, and phone numbers are masked.
"""

# Tested by tests/test_audit_complete.py, tests/portal/test_operators.py and tests/retention/test_erasure.py

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, inspect

from shortener.ids import IdGenerator
from shortener.logs import mask_numbers, mask_recipient
from shortener.model import ALL_APPLICATIONS, record
from shortener.storage.schema import audit_log

MAX_OBJECT_CHARACTERS = 200


@record
class Actor:
    """The actor of an action, as the audit log names it: an operator, the command line, an API key, a background job, or the
    start of a server. Only an operator has an `operator_id` and a `session_id`. `os_user` is the user of the operating system who
    ran a command. Only the audit log contains `os_user`: the history of links, which customers can read, does not."""

    operator_id: int | None = None
    name: str = ""
    session_id: int | None = None
    network: str = ""
    os_user: str = ""

    @property
    def logged_name(self) -> str:
        """The name of the actor in the audit log."""
        return f"{self.name} ({self.os_user})" if self.os_user else self.name


#: The actor of commands. `cli.common.command_line_audit` adds the user of the operating system.
COMMAND_LINE = Actor(name="command line")
#: The actor of changes that a process makes while it starts, for example when it creates the first application.
SERVER_START = Actor(name="server start")
#: The actor if a background job stops something that a person has started, for example a link update that fails.
BACKGROUND_JOB = Actor(name="background job")


KEY_PREFIX = "key "  # If an actor is an API key, its name begins with this text.


def key_actor(key_id: int) -> str:
    """Return the name of an API key as actor, for the audit log and the history of a link."""
    return f"{KEY_PREFIX}{key_id}"


@record
class AuditWriter:
    """Adds rows to the audit log for one actor. `ids` generates the id of each row."""

    actor: Actor
    ids: IdGenerator

    def can_add(self, connection: Connection) -> bool:
        """Return whether the database has a table for the audit log. A restored database of an old version may have none."""
        return inspect(connection).has_table(audit_log.name)

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
        recipient: str | None = None,
    ) -> None:
        """Add a row to the audit log. Call this in the transaction of the action itself. `action` is a verb in snake case, such
        as `operator_invited`. `application_id` is None or ALL_APPLICATIONS if the action affects all applications.

        If `subject` is a message id, `recipient` is the phone number of the message. Then only this number and international
        numbers are masked in the id. Other digits stay readable, because many message ids consist of digits. Without `recipient`,
        every number in `subject` that may be a phone number is masked."""
        masked = mask_numbers(subject) if recipient is None else mask_recipient(subject, recipient)
        connection.execute(
            insert(audit_log).values(
                id=self.ids(),
                at=now,
                operator_id=self.actor.operator_id,
                operator=self.actor.logged_name,
                session_id=self.actor.session_id,
                network=self.actor.network,
                action=action,
                application_id=None if application_id == ALL_APPLICATIONS else application_id,
                object=masked[:MAX_OBJECT_CHARACTERS],
                before=_masked(before),
                after=_masked(after),
            )
        )

    def add_differences(
        self,
        connection: Connection,
        now: datetime,
        action: str,
        subject: str,
        old: Mapping[str, Any],
        new: Mapping[str, Any],
        *,
        application_id: int | None,
    ) -> None:
        """Add a row with the values that differ between `old` and `new`. Both have the same keys. If no value differs, add no
        row."""
        names = [name for name in new if old[name] != new[name]]
        if names:
            before, after = ({name: values[name] for name in names} for values in (old, new))
            self.add(connection, now, action, subject, application_id=application_id, before=before, after=after)


def _masked(value: Any) -> Any:
    """Return a JSON value with masked phone numbers in all its texts, for example in the name of a campaign."""
    if isinstance(value, str):
        return mask_numbers(value)
    if isinstance(value, Mapping):
        return {name: _masked(one) for name, one in value.items()}
    return [_masked(one) for one in value] if isinstance(value, list | tuple) else value
