from collections.abc import Callable

import pytest

from shortener.clicks.outage import Outage, OutageState
from tests.one_test import in_one_test

NORMAL, OUTAGE, RECOVERING = OutageState.NORMAL, OutageState.OUTAGE, OutageState.RECOVERING


@in_one_test
@pytest.mark.parametrize(
    ("before", "transition", "after"),
    [
        (NORMAL, Outage.begin, OUTAGE),
        (NORMAL, Outage.begin_recovery, NORMAL),
        (NORMAL, Outage.relapse, NORMAL),
        (NORMAL, Outage.end, NORMAL),
        (OUTAGE, Outage.begin, OUTAGE),
        (OUTAGE, Outage.begin_recovery, RECOVERING),
        (OUTAGE, Outage.relapse, OUTAGE),
        (OUTAGE, Outage.end, OUTAGE),
        (RECOVERING, Outage.begin, OUTAGE),
        (RECOVERING, Outage.begin_recovery, RECOVERING),
        (RECOVERING, Outage.relapse, OUTAGE),
        (RECOVERING, Outage.end, NORMAL),
    ],
)
def test_each_transition_between_outage_states_leads_to_the_documented_state(
    before: OutageState, transition: Callable[[Outage], bool], after: OutageState
) -> None:
    outage = Outage()
    outage.state = before
    assert transition(outage) is (before is not after)
    assert outage.state is after
    assert outage.uses_spool is (after is not NORMAL)
