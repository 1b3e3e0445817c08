"""Metrics for Prometheus: what the server counts itself, and the engine's snapshot at the time of a look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stretto.serving.answers import spans_of

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, stats: Callable[[], Mapping[str, Any]], info: Callable[[], Mapping[str, Any]]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("stretto_requests", "HTTP requests.", ("path", "status"), registry=registry)
        self.rejected = Counter("stretto_rejected", "Requests that were not taken.", ("reason",), registry=registry)
        self.answers = Counter("stretto_answers", "Finished samples.", ("reason", "method"), registry=registry)
        self.prompt_tokens = Counter("stretto_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.cached_tokens = Counter("stretto_cached_tokens", "Those found in the prefix cache.", registry=registry)
        self.tokens = Counter("stretto_generated_tokens", "Tokens written.", registry=registry)
        self.queue = self._seconds("queue", "Time before the first step.")
        self.ttft = self._seconds("ttft", "Time to the first token.")
        self.tpot = self._seconds("tpot", "Time of each further token.")
        registry.register(Snapshot(stats, info))

    def _seconds(self, name: str, says: str) -> Histogram:
        return Histogram(f"stretto_{name}_seconds", says, buckets=SECONDS, registry=self._registry)

    def count(self, path: str, status: int) -> None:
        """Count one answered HTTP request."""
        self.requests.labels(path, str(status)).inc()

    def finished(self, completion: Mapping[str, Any]) -> None:
        """Count one finished sample."""
        stats, tokens = completion["stats"], len(completion["token_ids"])
        spans = spans_of(stats)
        self.answers.labels(completion["finish_reason"], completion["method"]).inc()
        self.tokens.inc(tokens)
        self.cached_tokens.inc(stats.get("cached", 0))
        self.queue.observe(spans["queue_ms"] / 1e3)
        if tokens:
            self.ttft.observe((spans["queue_ms"] + spans["prefill_ms"]) / 1e3)
        if tokens > 1:
            self.tpot.observe(spans["decode_ms"] / (tokens - 1) / 1e3)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class Snapshot(Collector):
    """The engine's own counts. They begin anew with the engine's process, as counters of Prometheus may."""

    def __init__(self, stats: Callable[[], Mapping[str, Any]], info: Callable[[], Mapping[str, Any]]) -> None:
        self._stats, self._info = stats, info

    def collect(self) -> Iterator[Metric]:
        """Yield what the last snapshot says."""
        told = self._stats()
        engine, requests = told["engine"], told["requests"]
        for name in ("deaths", "restarts", "resumed"):
            yield CounterMetricFamily(f"stretto_engine_{name}", f"Of the engine's process: {name}.", told[name])
        yield GaugeMetricFamily("stretto_ready", "Whether requests are served.", int(told["why_not_ready"] is None))
        for name in ("open", "waiting"):
            yield GaugeMetricFamily(f"stretto_requests_{name}", f"Requests that are {name}.", requests[name])
        for name in ("rejected", "timeouts", "aborted", "failed"):
            yield CounterMetricFamily(f"stretto_requests_{name}", f"Requests: {name}.", requests[name])
        if not engine:
            return
        yield GaugeMetricFamily("stretto_engine_pid", "The engine's process.", self._info().get("pid", 0))
        yield GaugeMetricFamily("stretto_running", "Samples in the batch.", engine["running"])
        for name in ("steps", "preemptions"):
            yield CounterMetricFamily(f"stretto_{name}", f"Of the engine: {name}.", engine[name])
        yield family(
            "stretto_rows", "Rows computed.", ("kind",), ((k,) for k in engine["rows"]), engine["rows"].values()
        )
        seconds = engine["seconds"]
        yield family("stretto_step_seconds", "Time in steps.", ("part",), ((k,) for k in seconds), seconds.values())
        yield from self._drafts(engine["drafts"])
        yield from self._caches(engine["caches"])
        yield from self._ledgers(engine["ledgers"])

    def _drafts(self, drafts: Mapping[str, Any]) -> Iterator[Metric]:
        """Yield checked and accepted tokens by drafter and depth."""
        places = [(name, str(depth)) for name, depths in drafts.items() for depth in range(1, len(depths) + 1)]
        for place, what in enumerate(("checked", "accepted")):
            values = [entry[place] for depths in drafts.values() for entry in depths]
            yield family(f"stretto_draft_{what}", f"Drafted tokens {what}.", ("drafter", "depth"), places, values)

    def _caches(self, caches: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
        models = [(name,) for name in caches]
        for name in ("capacity", "free", "cached"):
            gauge = GaugeMetricFamily(f"stretto_cache_{name}", f"Positions of the cache: {name}.", labels=("model",))
            for labels, cache in zip(models, caches.values(), strict=True):
                gauge.add_metric(labels, cache[name])
            yield gauge
        for name in ("lookups", "hits", "evictions"):
            values = [cache[name] for cache in caches.values()]
            yield family(f"stretto_cache_{name}", f"Prefix cache: {name}.", ("model",), models, values)

    def _ledgers(self, ledgers: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
        """Yield what allocators book: every number of a ledger, by its path."""
        gauge = GaugeMetricFamily("stretto_ledger", "What the allocator has booked.", labels=("method", "entry"))
        for method, ledger in ledgers.items():
            for entry, value in numbers(ledger):
                gauge.add_metric((method, entry), value)
        yield gauge


def family(
    name: str, says: str, labels: tuple[str, ...], places: Iterable[tuple[str, ...]], values: Iterable[float]
) -> Metric:
    """Return a counter with a value for each place."""
    counter = CounterMetricFamily(name, says, labels=labels)
    for place, value in zip(places, values, strict=True):
        counter.add_metric(place, value)
    return counter


def numbers(told: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers in nested mappings with their paths."""
    for key, value in told.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            yield from numbers(value, where)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield where, value
