"""What the server counts, in Prometheus' form; names follow those of text-embeddings-inference."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

if TYPE_CHECKING:
    from hasten.serve.running import Ran
    from hasten.serve.service import Answered, Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS = (16, 64, 256, 1024, 4096, 16384)
_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


class Metrics:
    """Counters of one server, each labelled with the model's name."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of: Callable[..., Any] = cache(lambda metric, *labels: metric.labels(*labels))

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                f"hasten_{name}", text, ("model", *labels), registry=self.registry, buckets=buckets
            )

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"hasten_{name}", text, ("model", *labels), registry=self.registry)

        self._requests = counter("request_count", "Requests.", "protocol")
        self._failures = counter("request_failure", "Requests that were refused or failed.", "kind")
        self._successes = counter("request_success", "Requests that were answered.")
        self._request_s = histogram("request_duration_seconds", "From request to answer.", _SECONDS)
        self._tokenize_s = histogram(
            "request_tokenization_duration_seconds", "Until the texts are tokenized.", _SECONDS
        )
        self._queue_s = histogram(
            "request_queue_duration_seconds", "Until the first text ran.", _SECONDS
        )
        self._inference_s = histogram(
            "request_inference_duration_seconds", "From then to the last answer.", _SECONDS
        )
        self._batch_s = histogram("batch_duration_seconds", "Of one batch.", _SECONDS, "stage")
        self._batch_size = histogram("batch_size", "Texts of a batch.", _SIZES, "stage")
        self._batch_tokens = histogram("batch_tokens", "Tokens of a batch.", _TOKENS, "stage")
        self._padding = histogram("batch_padding_ratio", "Padding of a batch.", _SHARES, "stage")
        self._batch_failures = counter("batch_failure", "Batches that failed.", "stage")
        self._texts = counter("stage_texts", "Texts that a stage has run.", "stage")
        self._handed_on = counter("stage_handed_on", "Texts that it was not sure of.", "stage")
        self._ready = self._gauge("ready", "Whether the model answers: 1 or 0.")
        self._in_flight = self._gauge("requests_in_flight", "Requests that are not answered yet.")
        self._drift = self._gauge("drift_warnings", "Warnings that texts are unlike the proof's.")
        self._replaced = counter("bundle_replacements", "Bundles that took over.", "outcome")
        self._queue_cost = self._gauge("queue_cost_seconds", "Work that waits.")
        self._queue_size = self._gauge("queue_size", "Texts that wait.")
        self._bundle = Info("hasten_bundle", "What is served.", ("model",), registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"hasten_{name}", text, ("model",), registry=self.registry)

    def serving(self, model: str, service: Service) -> None:
        """Follow a model's queue, and say what it is."""
        self._queue_cost.labels(model).set_function(lambda: service.backlog_s)
        self._queue_size.labels(model).set_function(lambda: service.waiting)
        self._ready.labels(model).set_function(lambda: service.ready)
        self._in_flight.labels(model).set_function(lambda: service.in_flight)
        self._drift.labels(model).set_function(lambda: service.drifts)
        bundle = service.predictor.bundle
        self._bundle.labels(model).info(
            {
                "task": bundle.model.task,
                "candidate": bundle.plan.candidate.label,
                "digest": bundle.digest[:12],
            }
        )

    def on_batch(self, model: str) -> Callable[[Ran], None]:
        """What a service tells of its batches; called on the streams' threads."""

        def ran(batch: Ran) -> None:
            stage = str(batch.stage + 1)
            if batch.failed:
                self._of(self._batch_failures, model, stage).inc()
                return
            self._of(self._texts, model, stage).inc(batch.texts)
            self._of(self._handed_on, model, stage).inc(batch.handed_on)
            self._of(self._batch_s, model, stage).observe(batch.latency_s)
            self._of(self._batch_size, model, stage).observe(batch.texts)
            self._of(self._batch_tokens, model, stage).observe(batch.tokens)
            padding = 1.0 - batch.tokens / max(batch.padded_tokens, 1)
            self._of(self._padding, model, stage).observe(padding)

        return ran

    def asked(self, model: str, protocol: str) -> None:
        """A request came."""
        self._of(self._requests, model, protocol).inc()

    def answered(self, model: str, total_s: float, answered: Answered | None) -> None:
        """A request was answered; ``answered`` says where its time went, if texts ran."""
        self._of(self._successes, model).inc()
        self._of(self._request_s, model).observe(total_s)
        if answered:
            self._of(self._tokenize_s, model).observe(answered.tokenize_s)
            self._of(self._queue_s, model).observe(answered.queue_s)
            self._of(self._inference_s, model).observe(answered.inference_s)

    def failed(self, model: str, kind: str) -> None:
        """A request was refused, or failed; ``model`` is empty where it was not known yet."""
        self._of(self._failures, model, kind).inc()

    def replaced(self, model: str, outcome: str) -> None:
        """Another bundle took over (``done``), or could not (``refused``)."""
        self._of(self._replaced, model, outcome).inc()

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)
