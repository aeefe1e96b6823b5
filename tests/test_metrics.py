from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from shortener.metrics import Histogram, Metrics, RequestTotals


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


def test_a_histogram_counts_values_up_to_and_including_each_bound() -> None:
    metrics, one = Metrics(), Histogram((0.1, 1.0))
    by_path: dict[tuple[str, ...], Histogram] = {}
    metrics.histogram("work_seconds", "Work.", lambda: one)
    metrics.histogram("call_seconds", "Calls, by path.", lambda: by_path, "path")
    for seconds in (0.05, 0.1, 0.5, 3.0):
        one.observe(seconds)
    by_path["/x",] = Histogram((1.0,))
    by_path["/x",].observe(0.5)
    values = samples(metrics)
    assert [values["work_seconds_bucket", (("le", bound),)] for bound in ("0.1", "1.0", "+Inf")] == [2, 3, 4]
    assert values["work_seconds_count", ()] == one.count == 4
    assert abs(values["work_seconds_sum", ()] - 3.65) < 1e-9
    assert values["call_seconds_count", (("path", "/x"),)] == 1


def test_responses_are_counted_by_endpoint_status_and_error_code() -> None:
    totals, metrics = RequestTotals(), Metrics()
    totals.register_metrics(metrics)
    totals.add("GET", "/a/{id}", 200, "", 0.01)
    totals.add("GET", "/a/{id}", 404, "NOT_FOUND", 0.02)
    found = {(name, frozenset(labels)): value for (name, labels), value in samples(metrics).items()}
    labels = {("method", "GET"), ("endpoint", "/a/{id}")}
    more = {("status", "404"), ("error_code", "NOT_FOUND")}
    assert found["shortener_responses_total", frozenset(labels | more)] == 1
    assert found["shortener_request_seconds_count", frozenset(labels)] == 2
    assert [one.name for one in metrics.descriptions()] == ["shortener_request_seconds", "shortener_responses_total"]


def test_two_services_in_one_process_have_separate_metrics() -> None:
    one, two = Metrics(), Metrics()
    one.gauge("parts", "Parts.", lambda: 1)
    two.gauge("parts", "Parts.", lambda: 2)
    assert (samples(one)["parts", ()], samples(two)["parts", ()]) == (1, 2)


def test_the_label_value_of_a_metric_can_be_any_text() -> None:
    metrics = Metrics()
    metrics.counter("parts", "Parts, by name.", lambda: {('say "hi"\n\\',): 1}, "name")
    assert samples(metrics)["parts_total", (("name", 'say "hi"\n\\'),)] == 1
