"""This module adds the place of the configured database, and what to check, to the error of a database that is unavailable.

The error of a driver, such as "Connection refused", does not name the database. An operator whose settings select another database
than expected could not find the cause.
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

# Errors of SQLite and of the operating system if the user of the process may not open or write a file.
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
    """Add the place of the configured database as a note to a StoreUnavailable that is raised in the `with` block."""
    try:
        yield
    except StoreUnavailable as error:
        from shortener.storage.installation import place_of

        place = place_of(settings)
        if settings.store_url.startswith("postgresql"):
            note = f"It is {place} (setting DATABASE_URL)"
        elif _NO_PERMISSION.search(str(error)):
            note = f"It is in {place}. The user {user_name()} must be able to write this place"
        else:
            note = f"It is in {place}"
        error.add_note(note)
        raise


def describe(error: StoreUnavailable) -> str:
    """Return the text of an error with the note of `name_database`."""
    return ". ".join([str(error), *getattr(error, "__notes__", [])])
