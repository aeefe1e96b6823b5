"""The SQL that computes the next attempt number of a delivery, or of a message for a gateway.

The column `attempt` is the number of started attempts. The column `base_attempt` is the number of started attempts that do not
count towards the maximum. Both columns have 16 bits on PostgreSQL. Replays, responses with 429 and local failures may start any
number of attempts, so the numbers could become too large for the columns. One such row would be enough to make the transaction
fail that claims all due rows.
"""
# Tested by tests/delivery/test_dispatch_queries.py and tests/gateways/test_queries.py

from __future__ import annotations

#: From this number of attempts on, the attempts that do not count are subtracted from both columns.
MAX_ATTEMPT_NUMBER = 32_000

#: The assignments of an UPDATE statement that starts the next attempt. A subtraction leaves `base_attempt` at 1 and not at 0.
#: Otherwise the next attempt could get the number 1, which only the very first attempt has.
START_ATTEMPT = (
    f"attempt = CASE WHEN attempt < {MAX_ATTEMPT_NUMBER} THEN attempt + 1 ELSE attempt - base_attempt + 2 END, "
    f"base_attempt = CASE WHEN attempt < {MAX_ATTEMPT_NUMBER} THEN base_attempt ELSE 1 END"
)
