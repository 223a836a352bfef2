"""What the server counts, in the form of Prometheus."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (*tuple(base * 10.0**e for e in range(-4, 1) for base in (1, 2, 5)), 10.0, 30.0)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = all_of_it = CollectorRegistry()
        ProcessCollector(registry=all_of_it)
        self.requests = Counter(
            "nmsfree_requests",
            "Requests by route and HTTP status",
            ["route", "status"],
            registry=all_of_it,
        )
        self.stages = Histogram(
            "nmsfree_stage_seconds",
            "Time of a request in a stage: receive, decode, queue, network",
            ["model", "stage"],
            registry=all_of_it,
            buckets=SECONDS,
        )
        self.batches = Histogram(
            "nmsfree_batch_size",
            "Pictures in one run of a model",
            ["model"],
            registry=all_of_it,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )
        self.admitted = Gauge(
            "nmsfree_queue", "Requests in work or waiting", ["model"], registry=all_of_it
        )
        self.ready = Gauge(
            "nmsfree_ready",
            "1 while the engine answers its file's canary",
            ["model"],
            registry=all_of_it,
        )

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        text: bytes = generate_latest(self._registry)
        return text
