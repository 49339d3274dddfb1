"""Our text of counters and histograms is what Prometheus' own library reads and would have written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.observability.metric_series import counter, gauge, histogram, label_text

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

BOUNDS = (0.05, 1, 2.5, 10)
LABELS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=8)
VALUES = st.floats(min_value=0, max_value=1e9) | st.sampled_from(BOUNDS) | st.integers(0, 2**60)


def read(text: str) -> Series:
    """Name and labels of each series, and its value; none may be there twice."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = {
        (s.name, frozenset(s.labels.items())): s.value for s in samples if not s.name.endswith("_created")
    }
    assert len(found) == len([s for s in samples if not s.name.endswith("_created")])
    return found


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, frozenset(labels.items())]


@given(st.lists(st.tuples(LABELS, LABELS, VALUES)))
def test_counters_are_those_of_prometheus_client(updates: Sequence[tuple[str, str, float]]) -> None:
    ours, registry = counter("things", "Help", "a", "b"), CollectorRegistry()
    theirs = prometheus_client.Counter("things", "Help", ("a", "b"), registry=registry)
    for a, b, amount in updates:
        ours.labels(a, b).inc(amount)
        theirs.labels(a, b).inc(amount)
    assert read(ours.text()) == read(generate_latest(registry).decode())


@given(st.lists(st.tuples(LABELS, VALUES)))
def test_histograms_are_those_of_prometheus_client(updates: Sequence[tuple[str, float]]) -> None:
    ours, registry = histogram("time", "Help", BOUNDS, "a"), CollectorRegistry()
    theirs = prometheus_client.Histogram("time", "Help", ("a",), buckets=BOUNDS, registry=registry)
    for a, amount in updates:
        ours.labels(a).observe(amount)
        theirs.labels(a).observe(amount)
    assert read(ours.text()) == read(generate_latest(registry).decode())


@given(st.lists(VALUES, min_size=1))
def test_series_without_labels_are_those_of_prometheus_client(amounts: Sequence[float]) -> None:
    count, times, registry = counter("things", "Help"), histogram("time", "Help", BOUNDS), CollectorRegistry()
    their_count = prometheus_client.Counter("things", "Help", registry=registry)
    their_times = prometheus_client.Histogram("time", "Help", buckets=BOUNDS, registry=registry)
    for amount in amounts:
        count.labels().inc(amount)
        their_count.inc(amount)
        times.labels().observe(amount)
        their_times.observe(amount)
    assert "{," not in times.text(), "Prometheus itself does not read that"
    assert read(count.text() + times.text()) == read(generate_latest(registry).decode())


@given(LABELS, st.floats(allow_nan=False))
def test_a_gauge_is_read_back(label: str, amount: float) -> None:
    text = gauge("level", "Help", [(label_text([("a", label)]), amount), ("", 1)])
    assert read(text) == {("level", frozenset({("a", label)})): amount, ("level", frozenset()): 1.0}


def test_the_head_says_what_it_is() -> None:
    texts = [counter("things", "Some things", "a").text(), histogram("time", "Some time", BOUNDS, "a").text()]
    assert texts == [
        "# HELP things_total Some things\n# TYPE things_total counter\n",
        "# HELP time Some time\n# TYPE time histogram\n",
    ]
    assert gauge("level", "A level", []) == "# HELP level A level\n# TYPE level gauge\n"


def test_labels_are_escaped() -> None:
    assert label_text([("a", 'x"y\\z\n'), ("b", "\\n")]) == r'a="x\"y\\z\n",b="\\n"'


def test_a_bound_belongs_to_its_bucket() -> None:
    times = histogram("time", "Help", (1, 2), "a")
    for amount in (1, math.nextafter(1, 2), 2, 3):
        times.labels("x").observe(amount)
    series = read(times.text())
    counts = [value(series, "time_bucket", a="x", le=le) for le in ("1.0", "2.0", "+Inf")]
    assert counts == [1, 3, 4]
    assert value(series, "time_count", a="x") == 4


def test_what_is_shown_follows_what_happens() -> None:
    things, times = counter("things", "Help", "a"), histogram("time", "Help", BOUNDS, "a")
    assert read(things.text() + times.text()) == {}
    things.labels("x")
    assert value(read(things.text()), "things_total", a="x") == 0, "asked for is enough to be shown"
    for count in (1, 2):
        things.labels("x").inc()
        times.labels("x").observe(0.5)
        for _ in range(2):  # the second one comes from memory
            assert value(read(things.text()), "things_total", a="x") == count
            series = read(times.text())
            assert value(series, "time_sum", a="x") == count / 2
            assert (
                value(series, "time_count", a="x") == value(series, "time_bucket", a="x", le="+Inf") == count
            )
