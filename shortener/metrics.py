"""The metrics of `/metrics` in the text format of Prometheus.

A part of the service counts in memory and registers a function that returns each number. A scrape calls these functions and does
nothing else: it reads no table and waits for nothing. The numbers are those of one process since its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

#: The value of a metric: one number, or one number for each combination of label values.
Reading = float | Mapping[tuple[str, ...], float]


class Metrics(Collector):
    """The registered metrics of a process."""

    def __init__(self) -> None:
        self._families: list[tuple[type[CounterMetricFamily | GaugeMetricFamily], str, str, tuple[str, ...], Callable[[], Reading]]]
        self._families = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)  # This collector adds metrics of memory, processor time and open files.

    def counter(self, name: str, help: str, read: Callable[[], Reading], *labels: str) -> None:
        """Register a counter: a number that only grows. Its name in the output is `{name}_total`."""
        self._families.append((CounterMetricFamily, name, help, labels, read))

    def gauge(self, name: str, help: str, read: Callable[[], Reading], *labels: str) -> None:
        """Register a gauge: a number that can grow and shrink."""
        self._families.append((GaugeMetricFamily, name, help, labels, read))

    def collect(self) -> Iterator[Metric]:
        """Yield all registered metrics, as the registry of the Prometheus client requires."""
        for kind, name, help, labels, read in self._families:
            family = kind(name, help, labels=labels)
            reading = read()
            for values, value in reading.items() if isinstance(reading, Mapping) else [((), reading)]:
                family.add_metric(list(values), value)
            yield family

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their content type. `accept` is the Accept header of the scraper."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
