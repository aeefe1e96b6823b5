"""The metric that a hit counts as.

This module has the only definition. Three modules use it, and their counts must agree exactly: `clicks.batch` counts a hit when it
records it, `clicks.verdicts.correction` moves it to another metric when its verdict changes, and `reporting.counts` counts the rows
again to verify the counts. `hit_metric` is the rule in Python, `HIT_METRIC` is the same rule in SQL. Both come from `_RULES`.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import case

from shortener.model import HitFlag, Verdict
from shortener.storage.schema import hits

CLICKS = "clicks"
CLICKED_LINKS = "clicked_links"  # the first click of each link


class _Rule(NamedTuple):
    """Hits with this flag, or with this verdict, count as `metric`; None: they are not counted."""

    metric: str | None
    flag: HitFlag = HitFlag.NONE
    verdict: Verdict | None = None

    def matches(self, verdict: int, flags: int) -> bool:
        return bool(flags & self.flag) if self.verdict is None else verdict == self.verdict


#: The first rule that matches decides. A hit without a matching rule is a person's hit on an active link: a click.
_RULES = (
    _Rule("late_hits", flag=HitFlag.LATE),
    _Rule("suspected_hits", verdict=Verdict.SUSPECTED),
    _Rule("ignored_hits", verdict=Verdict.IGNORED),
    _Rule(None, flag=HitFlag.DISABLED),
)

_RELEVANT_FLAGS = int(HitFlag.LATE | HitFlag.DISABLED)

# All combinations in a table: one look-up per hit, on the click path.
_METRICS = {
    (int(verdict), flags): next((rule.metric for rule in _RULES if rule.matches(verdict, flags)), CLICKS)
    for verdict in Verdict
    for flags in range(_RELEVANT_FLAGS + 1)
    if flags & _RELEVANT_FLAGS == flags
}


def hit_metric(verdict: int, flags: int) -> str | None:
    """Return the metric of a hit, None if the hit is not counted. `verdict`: a Verdict; `flags`: HitFlag bits."""
    return _METRICS[verdict, flags & _RELEVANT_FLAGS]


#: `hit_metric` as an SQL expression on the table `hits`.
HIT_METRIC = case(
    *(
        (
            hits.c.flags.bitwise_and(int(rule.flag)) != 0 if rule.verdict is None else hits.c.verdict == int(rule.verdict),
            rule.metric,
        )
        for rule in _RULES
    ),
    else_=CLICKS,
)

#: Whether a row of `hits` counts as a click: a simple condition, equivalent to `HIT_METRIC = 'clicks'`.
IS_CLICK = (hits.c.verdict == Verdict.HUMAN.value) & (hits.c.flags.bitwise_and(_RELEVANT_FLAGS) == 0)

#: Whether a row of `hits` is the first click of its link.
IS_FIRST_CLICK = hits.c.flags.bitwise_and(int(HitFlag.FIRST_FOR_LINK)) != 0
