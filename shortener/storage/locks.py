"""The advisory locks of PostgreSQL that this service uses."""

from __future__ import annotations

import enum


@enum.unique
class AdvisoryLock(enum.IntEnum):
    """The numbers of the advisory locks. All numbers must be different, and no other program in the same database may use one of
    them."""

    PURGE = 7_305_469_221
    FOLD_COUNTS = 7_305_469_222
    MIGRATE = 7_305_469_223
