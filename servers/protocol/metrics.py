"""How counts are told: Prometheus's text format. Pure.

Hot paths add to plain numbers (requests.py); metric families are made of them when somebody
asks. Names begin with `dcs_`, carry their unit, and no label names a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from servers.protocol.requests import BOUNDS_SECONDS, Requests

METRICS_PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def request_families(name: str, requests: Requests) -> Iterator[Metric]:
    """`name` is what is counted, as in `dcs_node_request`."""
    took = HistogramMetricFamily(f"{name}_seconds", "How many, by verb and duration.", labels=["verb"])
    failed = CounterMetricFamily(f"{name}_failures", "Those that failed.", labels=["verb"])
    for verb, one in sorted(requests.verbs.items()):
        so_far, buckets = 0, []
        for bound, count in zip((*map(str, BOUNDS_SECONDS), "+Inf"), one.within, strict=True):
            so_far += count
            buckets.append((bound, so_far))
        took.add_metric([verb], buckets, one.seconds)
        failed.add_metric([verb], one.failures)
    return iter((took, failed))


def gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def gauges(name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
    return _labelled(GaugeMetricFamily(name, what, labels=[label]), values)


def counter(name: str, what: str, value: float) -> Metric:
    """`name` without the `_total` that it is told with."""
    return CounterMetricFamily(name, what, value=value)


def counters(name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
    return _labelled(CounterMetricFamily(name, what, labels=[label]), values)


def _labelled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> Metric:
    for value in sorted(values):
        family.add_metric([value], values[value])
    return family


class _Collected:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        return self._families


def exposition(families: Iterable[Metric]) -> bytes:
    """What a scrape gets."""
    return generate_latest(_Collected(families))
