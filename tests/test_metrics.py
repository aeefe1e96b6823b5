from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from shortener.metrics import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text, _ = metrics.text("")
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_each_scrape_of_the_metrics_returns_the_current_values() -> None:
    metrics = Metrics()
    waiting = [0]
    by_status: dict[tuple[str, ...], float] = {}
    metrics.gauge("parts_waiting", "Parts that wait.", lambda: waiting[0])
    metrics.counter("parts_done", "Parts done, by status.", lambda: by_status, "status")
    assert samples(metrics)["parts_waiting", ()] == 0
    waiting[0] = 7
    by_status["200",] = 3
    values = samples(metrics)
    assert values["parts_waiting", ()] == 7
    assert values["parts_done_total", (("status", "200"),)] == 3


def test_two_services_in_one_process_have_separate_metrics() -> None:
    one, two = Metrics(), Metrics()
    one.gauge("parts", "Parts.", lambda: 1)
    two.gauge("parts", "Parts.", lambda: 2)
    assert (samples(one)["parts", ()], samples(two)["parts", ()]) == (1, 2)


def test_the_label_value_of_a_metric_can_be_any_text() -> None:
    metrics = Metrics()
    metrics.counter("parts", "Parts, by name.", lambda: {('say "hi"\n\\',): 1}, "name")
    assert samples(metrics)["parts_total", (("name", 'say "hi"\n\\'),)] == 1
