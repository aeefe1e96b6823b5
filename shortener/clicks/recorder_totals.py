"""The numbers of recorded hits and responses of this process, for /metrics."""
# Tested by tests/clicks/test_recorder.py

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from shortener.clicks.verdicts.contextual_rules import RULES as CONTEXTUAL_RULES
from shortener.clicks.verdicts.request_rules import RULES as REQUEST_RULES
from shortener.metrics import Histogram, Metrics
from shortener.model import Verdict, mutable_record


@mutable_record
class RecorderTotals:
    """Numbers of hits and responses since the process started."""

    recorded: int = 0
    not_stored: int = 0  # ignored and suspected hits that were not stored, because their link had reached its limit
    first_clicks: int = 0
    batches: int = 0
    late_responses: int = 0  # responses that were sent before their hit was stored
    spooled: int = 0
    drained: int = 0
    dropped: int = 0  # hits that were lost because nothing could store them
    dead_letters: int = 0  # hits that can never be stored
    id_clashes: int = 0  # hits that got a new id because another row had their id
    unknown: int = 0
    unknown_redirected: int = 0  # requests for unknown codes that got the fallback URL of their domain
    verdicts: dict[tuple[Verdict, str], int] = field(  # number of hits that got a response, by verdict and rule
        default_factory=lambda: dict.fromkeys((*REQUEST_RULES, *((Verdict.SUSPECTED, name) for name in CONTEXTUAL_RULES)), 0)
    )
    seconds: Histogram = field(default_factory=Histogram)  # time from the request for a code to its response
    answers: dict[int, int] = field(default_factory=dict)  # number of responses to requests for a code, by HTTP status

    def register_metrics(self, metrics: Metrics, unrecorded: Callable[[], int], is_outage: Callable[[], bool]) -> None:
        """Register the metrics that show these totals."""
        metrics.counter(
            "shortener_redirects",
            "Responses to requests for a code, by status.",
            lambda: {(str(status),): count for status, count in self.answers.items()},
            "status",
        )
        metrics.histogram(
            "shortener_redirect_seconds",
            "Time from a request for a code to its response, which usually includes the commit of the hit.",
            lambda: self.seconds,
        )
        metrics.counter(
            "shortener_hits",
            "Hits on links, by verdict and by the rule that determined the verdict.",
            lambda: {(verdict.api_name, rule): count for (verdict, rule), count in self.verdicts.items()},
            "verdict",
            "rule",
        )
        metrics.counter("shortener_hits_recorded", "Hits that are stored in the database.", lambda: self.recorded)
        metrics.counter(
            "shortener_hits_not_stored",
            "Ignored and suspected hits that got their redirect but are not stored, because their link had too many such "
            "hits in one minute.",
            lambda: self.not_stored,
        )
        metrics.gauge("shortener_hits_unrecorded", "Hits in memory that are not stored yet.", unrecorded)
        metrics.counter(
            "shortener_hits_dropped", "Hits that were lost, usually because too many hits waited in memory.", lambda: self.dropped
        )
        metrics.counter(
            "shortener_hits_dead_letter",
            "Hits that can never be stored: the database rejects them, or the entry in the spool is not a hit. They are in the "
            "table hits_dead_letter.",
            lambda: self.dead_letters,
        )
        metrics.counter(
            "shortener_hit_id_clashes",
            "Hits that got a new id, because another row had the same id. The cause is that two processes use the same node "
            "number.",
            lambda: self.id_clashes,
        )
        metrics.counter("shortener_hits_unknown", "Requests for codes that no link has.", lambda: self.unknown)
        metrics.counter(
            "shortener_hits_unknown_redirected",
            "Requests for unknown codes that were redirected to the fallback URL of the domain.",
            lambda: self.unknown_redirected,
        )
        metrics.counter("shortener_hit_batches", "Transactions that wrote hits.", lambda: self.batches)
        metrics.counter("shortener_first_clicks", "Messages that moved to CLICKTHRU.", lambda: self.first_clicks)
        metrics.gauge("shortener_store_outage", "1 while hits go to the spool instead of the database; otherwise 0.", is_outage)
        metrics.counter("shortener_hits_spooled", "Hits that were written to the spool in Redis.", lambda: self.spooled)
        metrics.counter("shortener_hits_drained", "Hits that were written from the spool to the database.", lambda: self.drained)
        metrics.counter(
            "shortener_late_responses",
            "Responses that were sent before the database stored their hit.",
            lambda: self.late_responses,
        )
