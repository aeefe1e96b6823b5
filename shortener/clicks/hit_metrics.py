"""This module contains the only definition of the metric that counts a hit, for example `clicks` or `suspected_hits`.

Three modules use the definition, so that their counts are equal. `clicks.batch` counts each hit that it stores.
`clicks.verdicts.correction` moves a hit to another metric when its verdict changes. `reporting.count_check` counts all rows
again, to verify the stored counts. `hit_metric` is the definition in Python, and `HIT_METRIC` is the same definition in SQL. Both
are made from `_RULES`.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import case

from shortener.model import HitFlag, Verdict
from shortener.storage.schema import hits

CLICKS = "clicks"
CLICKED_LINKS = "clicked_links"  # the name of the metric that counts the first clicks on links
CLICKED_MESSAGES = "clicked_messages"  # the name of the metric that counts the first clicks on messages


class _Rule(NamedTuple):
    """A rule that assigns a metric to all hits with certain flags or a certain verdict. If `metric` is None, these hits are not
    counted."""

    metric: str | None
    flag: HitFlag = HitFlag.NONE
    verdict: Verdict | None = None

    def matches(self, verdict: int, flags: int) -> bool:
        return bool(flags & self.flag) if self.verdict is None else verdict == self.verdict


#: The first rule that matches a hit determines its metric. If no rule matches, the hit is a click: a person's hit on an active
#: link.
_RULES = (
    _Rule("late_hits", flag=HitFlag.LATE),
    _Rule("suspected_hits", verdict=Verdict.SUSPECTED),
    _Rule("ignored_hits", verdict=Verdict.IGNORED),
    _Rule(None, flag=HitFlag.DISABLED),
)

_RELEVANT_FLAGS = int(HitFlag.LATE | HitFlag.DISABLED)

# The metric of every combination of verdict and flags. With this table, each hit needs only one look-up.
_METRICS = {
    (int(verdict), flags): next((rule.metric for rule in _RULES if rule.matches(verdict, flags)), CLICKS)
    for verdict in Verdict
    for flags in range(_RELEVANT_FLAGS + 1)
    if flags & _RELEVANT_FLAGS == flags
}


def hit_metric(verdict: int, flags: int) -> str | None:
    """Return the metric that counts a hit, or None if the hit is not counted. `verdict` is a `Verdict`, and `flags` contains bits
    of `HitFlag`."""
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

#: An SQL condition: the row of `hits` is a click. It is equivalent to `HIT_METRIC = 'clicks'`, but simpler.
IS_CLICK = (hits.c.verdict == Verdict.HUMAN.value) & (hits.c.flags.bitwise_and(_RELEVANT_FLAGS) == 0)

#: An SQL condition: the client of the hit did not get the confirmation page. A hit whose client got the page never becomes a
#: click, even if its verdict was HUMAN, because only the press of the button is a click.
GOT_NO_PAGE = hits.c.flags.bitwise_and(int(HitFlag.CONFIRMATION_PAGE)) == 0

#: An SQL condition: the row of `hits` is the first click on its link.
IS_FIRST_CLICK = hits.c.flags.bitwise_and(int(HitFlag.FIRST_FOR_LINK)) != 0
