"""The recipients that a rewrite request leaves out because they are invalid, and their entries in the response."""
# Tested by tests/messages/test_write.py

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shortener.messages.item_plan import Problem
from shortener.messages.plan import PlannedRequest


class Refusals:
    """The invalid recipients that a request skips, each with its first problem. The keys are (index of the message, index of the
    recipient)."""

    def __init__(self, request: PlannedRequest, problems: Sequence[Problem]) -> None:
        self._items = request.items
        self._problems: dict[tuple[int, int | None], Problem] = {}
        for problem in problems:
            self._problems.setdefault((problem.item, problem.recipient), problem)

    def find(self, item: int, recipient: int) -> Problem | None:
        return self._problems.get((item, recipient)) or self._problems.get((item, None))

    def serialize(self, item: int, recipient: int) -> dict[str, Any]:
        """Return the JSON fields of a skipped recipient in the response."""
        problem = self.find(item, recipient)
        assert problem is not None
        to, ids = self._items[item].to, self._items[item].message_ids
        return {
            "to": to[recipient] if to else "",
            "message_id": ids[recipient] if ids is not None and recipient < len(ids) else None,
            "error_code": problem.code.name,
            "field": problem.detail.field,
            "reason": problem.detail.reason,
            "position": problem.detail.position,
        }
