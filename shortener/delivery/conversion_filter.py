"""The filter of a tracker for conversions.

A tracker has two optional lists: the actions and the dispositions of the conversions that it receives. A conversion event must
match both. The fan-out applies the filter when it creates the deliveries of an event, so a change of a filter affects later events
only. Existing deliveries do not change.
"""
# Tested by tests/delivery/test_conversion_filter.py

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from shortener.model import record

#: The names of dispositions in a filter. `none` means that the conversion has no disposition, for example while it is pending.
DispositionName = Literal["positive", "negative", "none"]
DISPOSITIONS: tuple[DispositionName, ...] = get_args(DispositionName)
MAX_ACTIONS = 50
#: The action of the `conversion` event that follows the first click of a message. This event has no disposition.
CLICK_ACTION = "clickthru"


@record
class PermittedConversions:
    """The conversions that a filter permits: their case-folded actions, and the names of their dispositions. An empty set permits
    all."""

    actions: frozenset[str]
    dispositions: frozenset[str]

    def permits(self, action: str | None, disposition: str | None) -> bool:
        """Return whether the tracker receives a conversion event. Upper and lower case in `action` make no difference.
        `disposition` is None if the event has no disposition."""
        is_chosen = not self.actions or (action is not None and action.casefold() in self.actions)
        return is_chosen and (not self.dispositions or (disposition or "none") in self.dispositions)


def make_filter(actions: Iterable[str] | None, dispositions: Iterable[str] | None) -> PermittedConversions | None:
    """Return the filter with these actions and dispositions, or None if neither of them restricts the conversions."""
    if not actions and not dispositions:
        return None
    return PermittedConversions(frozenset(action.casefold() for action in actions or ()), frozenset(dispositions or ()))
