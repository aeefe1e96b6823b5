"""The states of an outage of the database. Only a recorder with a spool enters an outage.

    NORMAL ──begin──> OUTAGE ──begin_recovery──> RECOVERING ──end──> NORMAL
                        ^                             │
                        └───────begin, relapse────────┘

NORMAL: the batcher receives the hits and writes them to the database. OUTAGE: the database did not store a batch in time; the spool
receives the hits. RECOVERING: the database accepts transactions again, and the drainer writes the hits that were in the spool when
the recovery began. New hits still enter the spool, so that the earliest click on a link stays the first click.
"""

from __future__ import annotations

from enum import Enum

import structlog

log = structlog.get_logger(__name__)


class OutageState(Enum):
    NORMAL = "normal"
    OUTAGE = "outage"
    RECOVERING = "recovering"


class Outage:
    """The current state of an outage. Each method returns whether the state has changed. If the current state does not permit the
    transition, nothing changes."""

    def __init__(self) -> None:
        self.state = OutageState.NORMAL

    @property
    def uses_spool(self) -> bool:
        """Whether new hits go to the spool."""
        return self.state is not OutageState.NORMAL

    def begin(self) -> bool:
        """Begin the outage, after the database did not store a batch."""
        if self.state is OutageState.OUTAGE:
            return False
        if self.state is OutageState.NORMAL:
            log.warning("store_outage")
        self.state = OutageState.OUTAGE
        return True

    def begin_recovery(self) -> bool:
        """Begin the recovery, after the database has accepted a transaction again."""
        if self.state is not OutageState.OUTAGE:
            return False
        self.state = OutageState.RECOVERING
        return True

    def relapse(self) -> bool:
        """Return to the state OUTAGE, after the database has failed again during the recovery."""
        if self.state is not OutageState.RECOVERING:
            return False
        self.state = OutageState.OUTAGE
        return True

    def end(self) -> bool:
        """End the outage, after the spool was drained or the time limit of the recovery has passed."""
        if self.state is not OutageState.RECOVERING:
            return False
        self.state = OutageState.NORMAL
        log.warning("store_back")
        return True
