"""This module collects the metrics that `/metrics` returns in the text format of Prometheus. Each module of the service counts in
memory, and registers one function for each of its metrics. A request for `/metrics` only calls these functions: it reads no
database table and waits for nothing. Each process has its own counts, which begin at 0 when the process starts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from shortener.model import record

#: The value of a metric: one number, or a dictionary with one number for each combination of label values.
Reading = float | Mapping[tuple[str, ...], float]


#: Upper bounds of the buckets of durations, in seconds.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """A histogram of durations in seconds. Adding a duration takes one binary search and two additions."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Add a duration to the histogram."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    @property
    def count(self) -> int:
        """The number of durations that were added."""
        return sum(self._counts)

    @property
    def sum(self) -> float:
        """The sum of the durations that were added."""
        return self._sum

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulative counts that Prometheus requires: for each upper bound, the number of durations up to this bound.
        Also return the sum of all durations."""
        total, rows = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            rows.append((bound, float(total)))
        return rows, self._sum


class RequestTotals:
    """Requests to the API since the process started: durations by endpoint, and responses by endpoint, status and error code."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, ...], Histogram] = {}
        self.responses: Counter[tuple[str, ...]] = Counter()

    def add(self, method: str, path: str, status: int, error_code: str, seconds: float) -> None:
        """Count a response. `path` is the path of the endpoint, such as /api/v1/links/{code}. `error_code` is "" without an
        error."""
        key = (method, path)
        histogram = self.seconds.get(key)
        if histogram is None:
            histogram = self.seconds[key] = Histogram()
        histogram.observe(seconds)
        self.responses[method, path, str(status), error_code] += 1

    def register_metrics(self, metrics: Metrics) -> None:
        metrics.histogram(
            "shortener_request_seconds",
            "Duration of requests to the API, by method and path of the endpoint. Redirects are in shortener_redirect_seconds.",
            lambda: self.seconds,
            "method",
            "endpoint",
        )
        metrics.counter(
            "shortener_responses",
            "Responses of the API, by method, path of the endpoint, status and error code (empty without an error).",
            lambda: self.responses,
            "method",
            "endpoint",
            "status",
            "error_code",
        )


@record
class MetricDescription:
    """The description of a metric for the documentation. `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class Metrics(Collector):
    """The registered metrics of a process."""

    def __init__(self) -> None:
        self._histograms: list[tuple[str, str, tuple[str, ...], Callable[[], Histogram | Mapping[tuple[str, ...], Histogram]]]] = []
        self._families: list[tuple[type[CounterMetricFamily | GaugeMetricFamily], str, str, tuple[str, ...], Callable[[], Reading]]]
        self._families = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)  # This collector adds metrics of memory, processor time and open files.

    def counter(self, name: str, help: str, read: Callable[[], Reading], *labels: str) -> None:
        """Register a counter, which is a number that never decreases. Its name in the output is `{name}_total`."""
        self._families.append((CounterMetricFamily, name, help, labels, read))

    def gauge(self, name: str, help: str, read: Callable[[], Reading], *labels: str) -> None:
        """Register a gauge, which is a number that can increase and decrease."""
        self._families.append((GaugeMetricFamily, name, help, labels, read))

    def histogram(
        self,
        name: str,
        help: str,
        read: Callable[[], Histogram | Mapping[tuple[str, ...], Histogram]],
        *labels: str,
    ) -> None:
        """Register a histogram, or one histogram for each combination of label values."""
        self._histograms.append((name, help, labels, read))

    def descriptions(self) -> list[MetricDescription]:
        """Return the descriptions of all metrics of this service, sorted by name. Counters have the suffix `_total`."""
        found = [
            MetricDescription(name + "_total", "counter", labels, help)
            if kind is CounterMetricFamily
            else MetricDescription(name, "gauge", labels, help)
            for kind, name, help, labels, _ in self._families
        ]
        found += [MetricDescription(name, "histogram", labels, help) for name, help, labels, _ in self._histograms]
        return sorted(found, key=lambda one: one.name)

    def collect(self) -> Iterator[Metric]:
        """Yield all registered metrics, as the registry of the Prometheus client requires."""
        for kind, name, help, labels, read in self._families:
            family = kind(name, help, labels=labels)
            reading = read()
            for values, value in reading.items() if isinstance(reading, Mapping) else [((), reading)]:
                family.add_metric(list(values), value)
            yield family
        for name, help, labels, histograms in self._histograms:
            histogram_family = HistogramMetricFamily(name, help, labels=labels)
            found = histograms()
            for values, histogram in list(found.items()) if isinstance(found, Mapping) else [((), found)]:
                rows, total = histogram.buckets()
                histogram_family.add_metric(list(values), rows, total)
            yield histogram_family

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return the text of all metrics and its content type. `accept` is the Accept header of the scraper."""
        from prometheus_client.exposition import choose_encoder  # imported here, because it imports HTTP servers

        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def as_markdown(descriptions: Sequence[MetricDescription]) -> str:
    """Return the table of all metrics in docs/reference/metrics.md."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for one in descriptions:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        lines.append(f"| `{one.name}` | {one.kind} | {labels} | {one.help} |")
    return "\n".join(lines) + "\n"
