"""What a service counts and times, as Prometheus reads it."""

from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Measures:
    """A registry of its own for each service, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        ProcessCollector(registry=self.registry)
        self.requests = counter("maestro_requests", "Requests answered.", ["endpoint", "status"])
        self.seconds = histogram(
            "maestro_request_seconds",
            "From a request's headers to the end of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
        )
        self.rejected = counter("maestro_rejected", "Requests refused.", ["reason"])
        self.batches = histogram(
            "maestro_batch_images", "Images of one inference.", buckets=_IMAGES
        )
        self.inference = histogram(
            "maestro_inference_seconds", "Time of one inference.", buckets=_SECONDS
        )
        self.queue = gauge("maestro_queue_images", "Images accepted, not yet answered.")
        self.held = gauge("maestro_held_bytes", "Of bodies and decoded images.")
        self.connections = gauge("maestro_connections", "Connections open.")
        self.reloads = counter(
            "maestro_reloads", "Newer models met while serving.", ["model", "outcome"]
        )
        self.model_info = gauge(
            "maestro_model_info", "The models in use.", ["model", "version", "sha256"]
        )
        self.model_problem = gauge(
            "maestro_model_problem",
            "1 while a newer model cannot be looked for or used, or the index does not fit.",
            ["model"],
        )

    def ran(self, images: int, seconds: float) -> None:
        self.batches.observe(images)
        self.inference.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
