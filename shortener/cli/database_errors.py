"""This module adds two facts to the error of an unavailable database: where the configured database is, and what to check.

The error of a driver, such as "Connection refused", does not name the database. Without the name, operators could not find out
that their settings select another database than they expect.
"""
# Tested by tests/cli/test_database_errors.py

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager

from shortener.errors import StoreUnavailable
from shortener.settings import Settings

# Errors of SQLite and of the operating system if the user of the process has no permission to open or write a file.
_NO_PERMISSION = re.compile("readonly database|unable to open database file|Permission denied|Read-only file system")


def user_name() -> str:
    """Return the name of the user of the operating system who runs this process."""
    user_id = os.getuid()
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:  # a container can run a process as a user without a name
        return f"user {user_id}"


@contextmanager
def name_database(settings: Settings) -> Iterator[None]:
    """If the `with` block raises StoreUnavailable, add a note to this error that says where the configured database is."""
    try:
        yield
    except StoreUnavailable as error:
        from shortener.storage.installation import place_of

        place = place_of(settings)
        if settings.store_url.startswith("postgresql"):
            note = f"It is {place} (setting DATABASE_URL)"
        elif _NO_PERMISSION.search(str(error)):
            note = f"It is in {place}. The user {user_name()} must be able to write to it"
        else:
            note = f"It is in {place}"
        error.add_note(note)
        raise


def describe(error: StoreUnavailable) -> str:
    """Return the text of an error, followed by the note that `name_database` added."""
    return ". ".join([str(error), *getattr(error, "__notes__", [])])
