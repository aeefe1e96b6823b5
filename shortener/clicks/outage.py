"""The outage of the database, as a state machine. Only a recorder with a spool enters an outage.

    NORMAL ──begin──> OUTAGE ──begin_recovery──> RECOVERING ──end──> NORMAL
                        ^                             │
                        └───────begin, relapse────────┘

NORMAL: hits go to the batcher, and from there to the database. OUTAGE: the database did not take a batch, or not in time; hits go
to the spool. RECOVERING: the database accepts a transaction again, and the drainer writes what the spool held at that moment; new
hits still go to the spool, so that the earliest click on a link stays the first one.
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
    """The current state. Each method returns whether the state changed; a transition that does not apply changes nothing."""

    def __init__(self) -> None:
        self.state = OutageState.NORMAL

    @property
    def uses_spool(self) -> bool:
        """Whether hits go to the spool."""
        return self.state is not OutageState.NORMAL

    def begin(self) -> bool:
        """The database did not take a batch."""
        if self.state is OutageState.OUTAGE:
            return False
        if self.state is OutageState.NORMAL:
            log.warning("store_outage")
        self.state = OutageState.OUTAGE
        return True

    def begin_recovery(self) -> bool:
        """The database accepts transactions again."""
        if self.state is not OutageState.OUTAGE:
            return False
        self.state = OutageState.RECOVERING
        return True

    def relapse(self) -> bool:
        """The database failed again while the spool was drained."""
        if self.state is not OutageState.RECOVERING:
            return False
        self.state = OutageState.OUTAGE
        return True

    def end(self) -> bool:
        """The spool is drained, or has been drained for long enough."""
        if self.state is not OutageState.RECOVERING:
            return False
        self.state = OutageState.NORMAL
        log.warning("store_back")
        return True
