"""The totals of the rewriter. They exist from the start of the process; the rewriter itself is built when it is first used."""
# Tested by tests/messages/test_rewriter.py

from __future__ import annotations

from shortener.metrics import Metrics
from shortener.model import mutable_record


@mutable_record
class RewriteTotals:
    """Counts of one process: the messages and links that it has stored since its start, and its large requests in progress."""

    messages: int = 0
    links: int = 0
    large_requests: int = 0

    def register_metrics(self, metrics: Metrics) -> None:
        """Register the counters of stored messages and links."""
        metrics.counter("shortener_messages_created", "Messages that were rewritten and stored.", lambda: self.messages)
        metrics.counter("shortener_links_created", "Short links that were created.", lambda: self.links)
