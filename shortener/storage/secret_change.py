"""This module gives a new secret to a database whose secret was lost.

In the schema, `info={"encrypted": NAME}` marks columns that contain encrypted values. `adopt` removes the values that the new
secret cannot decrypt. A tracker or gateway that loses a value is disabled, so that no receiver gets a request without its
signature or credentials. Its deliveries or messages wait until an operator sets the values again and enables the tracker or
gateway. If the second factor of an operator is removed, the password is removed too. Codes of links do not depend on the secret,
so links continue to redirect.
"""

from __future__ import annotations

from sqlalchemy import Column, Connection, Table, delete, select, update

from shortener.model import record
from shortener.secret import Secret, SecretError
from shortener.storage.installation import FINGERPRINT, get, set_value
from shortener.storage.schema import installation, metadata

#: The `disabled_reason` of a tracker or gateway that is disabled because it has lost an encrypted value.
DISABLED_REASON = "the secret of the installation was lost; set the values that were encrypted with it again"

#: The name under which the installation stores the fingerprints of its former secrets, separated by spaces.
_FORMER = "former_secrets"


@record
class LostValue:
    """A stored value that was encrypted with the lost secret. `owner` is the name of its table, and `id` is the id of its row."""

    owner: str
    id: int
    name: str
    value: str


def encrypted_columns() -> list[tuple[Table, Column[str]]]:
    """Return all columns that contain encrypted values, with their tables."""
    return [(table, column) for table in metadata.sorted_tables for column in table.columns if column.info.get("encrypted")]


def find_lost(connection: Connection, secret: Secret) -> list[LostValue]:
    """Return the stored values that `secret` cannot decrypt."""
    found = []
    for table, column in encrypted_columns():
        label = table.c.get("name", table.c.get("host", table.c.id))
        for row in connection.execute(select(table.c.id, label, column).where(column.is_not(None)).order_by(table.c.id)):
            try:
                secret.decrypt(row[2])
            except SecretError:
                found.append(LostValue(str(table.name), row[0], str(row[1]), column.info["encrypted"]))
    return found


def adopt(connection: Connection, secret: Secret) -> list[LostValue]:
    """Make `secret` the secret of this database. Remove and return the values that it cannot decrypt.

    The old secret becomes one of the former secrets."""
    lost = find_lost(connection, secret)
    for table, column in encrypted_columns():
        ids = [value.id for value in lost if value.owner == table.name and value.value == column.info["encrypted"]]
        for id_ in ids:
            values: dict[str, object] = dict.fromkeys((column.name, *column.info.get("clears", ())))
            if "disabled_reason" in table.c:
                values |= {"enabled": False, "disabled_reason": DISABLED_REASON}
            if "revision" in table.c:
                values["revision"] = table.c.revision + 1
            connection.execute(update(table).where(table.c.id == id_).values(values))
    old = get(connection, FINGERPRINT)
    if old is not None and old != secret.fingerprint:
        set_value(connection, _FORMER, " ".join({*former_fingerprints(connection), old}))
    set_value(connection, FINGERPRINT, secret.fingerprint)
    return lost


def former_fingerprints(connection: Connection) -> list[str]:
    """Return the fingerprints of the former secrets of this database. The names of keys in Redis contain the fingerprint of the
    secret, so hits may still wait there under the names of a former secret."""
    return sorted((get(connection, _FORMER) or "").split())


def forget_former(connection: Connection) -> None:
    """Delete the fingerprints of the former secrets. Call this when no hits wait in Redis under the names of a former secret."""
    connection.execute(delete(installation).where(installation.c.name == _FORMER))
