from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import insert, select, update

from shortener.secret import Secret
from shortener.storage.database import Database
from shortener.storage.installation import FINGERPRINT, get
from shortener.storage.schema import applications, trackers
from shortener.storage.secret_change import (
    DISABLED_REASON,
    adopt,
    encrypted_columns,
    find_lost,
    forget_former,
    former_fingerprints,
)
from tests.conftest import NOON

OLD, NEW = Secret("0123456789abcdefghijklmnopqrstuv"), Secret("abcdefghijklmnopqrstuv0123456789")
ROOT = Path(__file__).parents[2]


async def test_adopting_a_new_secret_removes_undecryptable_values_and_disables_their_trackers(database: Database) -> None:
    def fill(connection: object) -> None:
        from sqlalchemy import Connection

        assert isinstance(connection, Connection)
        application = {"settings": {}, "created_at": NOON}
        connection.execute(insert(applications).values(name="a", callback_secret=OLD.encrypt("whsec_x"), **application))
        connection.execute(insert(applications).values(name="b", callback_secret=NEW.encrypt("whsec_y"), **application))
        tracker = {
            "application_id": 1,
            "enabled": True,
            "url": "https://t.example/",
            "topics": 1,
            "method": "POST",
            "format": "json",
            "success": {},
            "created_at": NOON,
            "updated_at": NOON,
        }
        connection.execute(insert(trackers).values(name="signed", secret=OLD.encrypt("s"), headers=OLD.encrypt("{}"), **tracker))
        connection.execute(insert(trackers).values(name="plain", **tracker))

    await database.write(fill)
    lost = await database.write(adopt, NEW)
    assert {(value.owner, value.name, value.value) for value in lost} == {
        ("applications", "a", "callback secret"),
        ("trackers", "signed", "signing secret"),
        ("trackers", "signed", "headers"),
    }
    rows = await database.read(lambda c: c.execute(select(trackers).order_by(trackers.c.id)).all())
    assert [(row.enabled, row.disabled_reason, row.secret, row.headers) for row in rows] == [
        (False, DISABLED_REASON, None, None),
        (True, None, None, None),
    ]
    secrets = await database.read(lambda c: c.scalars(select(applications.c.callback_secret).order_by(applications.c.id)).all())
    assert secrets[0] is None
    assert NEW.decrypt(str(secrets[1])) == "whsec_y"
    assert await database.read(get, FINGERPRINT) == NEW.fingerprint
    assert await database.read(find_lost, NEW) == []
    await database.write(lambda c: c.execute(update(applications).values(callback_secret=OLD.encrypt("z"))))
    assert len(await database.read(find_lost, NEW)) == 2


def test_every_column_with_encrypted_values_is_marked_in_the_schema() -> None:
    """Without `info={"encrypted": NAME}` in the schema, `secret adopt` would not find the values of a new encrypted column."""
    known = {
        "shortener/accounts/administration.py",
        "shortener/delivery/trackers.py",
        "shortener/gateways/store.py",
        "shortener/portal/me.py",  # this module puts an encrypted value into a form, and does not store it in the database
        "shortener/portal/second_factor.py",
        "shortener/secret.py",
        # This module stores encrypted responses for a day. If the secret is lost, a repeated request gets an error.
        "shortener/web/idempotency.py",
        # This module stores the encrypted entries of a form for an hour. If the secret is lost, the form is empty.
        "shortener/portal/kept_entries.py",
    }
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "shortener").rglob("*.py") if ".encrypt(" in path.read_text()}
    assert modules <= known, "mark the columns of the module in the schema, then add the module here"
    columns = {f"{table.name}.{column.name}" for table, column in encrypted_columns()}
    assert columns == {
        "applications.callback_secret",
        "applications.previous_callback_secret",
        "gateways.report_key",
        "gateways.settings",
        "operators.totp_secret",
        "trackers.client_certificate",
        "trackers.headers",
        "trackers.previous_secret",
        "trackers.secret",
    }
    for path in (ROOT / "shortener" / "storage" / "schema").glob("*.py"):
        for line in path.read_text().splitlines():
            assert not re.search(r'Column\("\w*(secret|certificate)", Text\)', line), line


async def test_the_fingerprints_of_former_secrets_are_stored_until_they_are_forgotten(database: Database) -> None:
    former = []
    for secret in (OLD, NEW, OLD):
        await database.write(adopt, secret)
        former.append(await database.read(former_fingerprints))
    assert former == [[], [OLD.fingerprint], sorted([OLD.fingerprint, NEW.fingerprint])]
    await database.write(forget_former)
    assert await database.read(former_fingerprints) == []
