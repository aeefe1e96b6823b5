"""The numbers that `/metrics` shows: what the parts count in memory, in Prometheus's text format.

A part keeps plain totals and offers them once, each by its name and a function that reads it. A scrape calls those functions and
does nothing else: no table is looked at, nothing waits, and a scrape every second costs no more than one a minute. Each process
shows its own numbers, since it began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

#: A number, or one for each combination of values of the labels.
Reading = float | Mapping[tuple[str, ...], float]


class Metrics(Collector):
    def __init__(self) -> None:
        self._numbers: list[tuple[type[CounterMetricFamily | GaugeMetricFamily], str, str, tuple[str, ...], Callable[[], Reading]]]
        self._numbers = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)  # memory, processor time, open files

    def counter(self, name: str, help: str, read: Callable[[], Reading], *labels: str) -> None:
        """Offer a number that only grows; it is shown as `{name}_total`."""
        self._numbers.append((CounterMetricFamily, name, help, labels, read))

    def gauge(self, name: str, help: str, read: Callable[[], Reading], *labels: str) -> None:
        """Offer a number that goes up and down."""
        self._numbers.append((GaugeMetricFamily, name, help, labels, read))

    def collect(self) -> Iterator[Metric]:
        for kind, name, help, labels, read in self._numbers:
            family = kind(name, help, labels=labels)
            reading = read()
            for values, value in reading.items() if isinstance(reading, Mapping) else [((), reading)]:
                family.add_metric(list(values), value)
            yield family

    def text(self, accept: str) -> tuple[bytes, str]:
        """Everything offered, and its content type, as a scraper that accepts `accept` reads it."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
