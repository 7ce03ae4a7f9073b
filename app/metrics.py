"""Every Prometheus metric of the service. HTTP metrics are labelled by route template, never by path or category."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Labelled = TypeVar("Labelled", Counter, Histogram)

# From one text pass (milliseconds) to a request with 1,000 categories on a slow machine (a minute).
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

# From one example on the embedded model to many examples on a large model that is shared with other jobs.
_JOB_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


class Metrics:
    """The metrics of one process, on a registry of their own so that several services can live in one test process.

    Args:
        categories: Number of categories with a label value of their own; all others share `other`. 0 = no category
            label, since each value makes a time series of its own in Prometheus.
    """

    def __init__(self, *, categories: int = 0) -> None:
        self._most_categories = categories
        self._categories: set[str] = set()
        by_category = ["category"] if categories else []
        self.registry = CollectorRegistry()
        on = self.registry
        self.requests = Counter(
            "exemplar_requests",
            "HTTP requests, by route, method and status.",
            ["route", "method", "status"],
            registry=on,
        )
        self.request_duration = Histogram(
            "exemplar_request_duration_seconds",
            "Time from the first byte of a request to the last byte of its response.",
            ["route", "method"],
            buckets=_SECONDS,
            registry=on,
        )
        self.inflight = Gauge("exemplar_inflight_requests", "HTTP requests in progress.", registry=on)
        self.rejected = Counter(
            "exemplar_rejected",
            "Refusals before any model work, by reason; a photo of a batch waits, and may be refused several times.",
            ["reason"],
            registry=on,
        )
        self.stage_duration = Histogram(
            "exemplar_inference_duration_seconds",
            "Duration of one stage of a segmentation, as in `timings_ms`.",
            ["backbone", "stage"],
            buckets=_SECONDS,
            registry=on,
        )
        self.queue_wait = Histogram(
            "exemplar_queue_wait_seconds",
            "Time a call waits in the queue of a model.",
            ["backbone", "kind"],
            buckets=_SECONDS,
            registry=on,
        )
        self.queue_depth = Gauge("exemplar_queue_depth", "Requests waiting for a model.", ["backbone"], registry=on)
        self.lane_batch_size = Histogram(
            "exemplar_lane_batch_size",
            "Calls that a model runs at the same time.",
            ["backbone"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=on,
        )
        self.lane_busy = Counter(
            "exemplar_lane_busy_seconds",
            "Time in which a model was computing; its rate is the utilisation.",
            ["backbone", "kind"],
            registry=on,
        )
        self.jobs = Counter("exemplar_jobs", "Jobs that ended, by kind and outcome.", ["kind", "outcome"], registry=on)
        self.job_duration = Histogram(
            "exemplar_job_duration_seconds",
            "Time from the start of a job to its end.",
            ["kind"],
            buckets=_JOB_SECONDS,
            registry=on,
        )
        self.jobs_running = Gauge("exemplar_jobs_running", "Jobs that this process is running.", ["kind"], registry=on)
        self.job_redeliveries = Counter(
            "exemplar_job_redeliveries", "Jobs taken over from a worker that died.", registry=on
        )
        self.dropped_messages = Counter(
            "exemplar_dropped_messages",
            "Messages of the job queue that this program did not write, dropped unread.",
            registry=on,
        )
        self.adapter_cache_hits = Counter(
            "exemplar_adapter_cache_hits", "Adapter reads answered from memory.", registry=on
        )
        self.adapter_cache_misses = Counter(
            "exemplar_adapter_cache_misses", "Adapter reads that went to the store.", registry=on
        )
        self.adapter_cache_evictions = Counter(
            "exemplar_adapter_cache_evictions", "Adapters evicted from memory.", registry=on
        )
        self.adapters_loaded = Gauge("exemplar_adapters_loaded", "Adapters in memory.", registry=on)
        self.adapter_cache_bytes = Gauge("exemplar_adapter_cache_bytes", "Memory of the cached adapters.", registry=on)
        self.adapter_load_duration = Histogram(
            "exemplar_adapter_load_seconds", "Time to read one adapter from the store.", buckets=_SECONDS, registry=on
        )
        self.image_cache_hits = Counter(
            "exemplar_image_cache_hits", "Photos whose encoding was in memory.", registry=on
        )
        self.image_cache_misses = Counter("exemplar_image_cache_misses", "Photos that had to be encoded.", registry=on)
        self.image_cache_bytes = Gauge(
            "exemplar_image_cache_bytes", "Memory of the cached photo encodings.", registry=on
        )
        self.backbone_warm = Gauge(
            "exemplar_backbone_warm", "1 if the model has finished its warm-up.", ["backbone", "revision"], registry=on
        )
        self.backbone_memory = Gauge(
            "exemplar_backbone_memory_bytes", "Memory of the weights of a model.", ["backbone", "device"], registry=on
        )
        self.backbone_load_duration = Histogram(
            "exemplar_backbone_load_seconds",
            "Time to load the weights of a model.",
            ["backbone"],
            buckets=_SECONDS,
            registry=on,
        )
        self.backbone_evictions = Counter(
            "exemplar_backbone_evictions", "Models unloaded because of the memory limit.", registry=on
        )
        self.gpu_memory = Gauge(
            "exemplar_gpu_memory_bytes", "GPU memory allocated by the tensors of this process.", ["device"], registry=on
        )
        self.gpu_utilization = Gauge(
            "exemplar_gpu_utilization_ratio",
            "Share of the last second in which the GPU was busy.",
            ["device"],
            registry=on,
        )
        self.category_requests = Counter(
            "exemplar_category_requests", "Requests for a taught category.", by_category, registry=on
        )
        self.example_gain = Histogram(
            "exemplar_example_gain",
            "IoU on the category's own examples: new adapter minus words alone.",
            by_category,
            buckets=(-0.5, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.5, 1.0),
            registry=on,
        )
        self.redis_latency = Histogram(
            "exemplar_redis_probe_seconds",
            "Duration of the test writes to the store, every 5 s and by `/readyz`.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
            registry=on,
        )
        self.redis_up = Gauge(
            "exemplar_redis_up", "1 if the store took the last test write; there is one every 5 s.", registry=on
        )
        self.redis_away = Gauge(
            "exemplar_redis_away",
            "1 while requests do not wait for the store, because it did not answer (circuit breaker open).",
            registry=on,
        )
        self.redis_outages = Counter(
            "exemplar_redis_outages", "Times that the store stopped answering requests.", registry=on
        )
        self.lookups_from_memory = Counter(
            "exemplar_lookups_from_memory",
            "Look-ups of categories answered from memory, because the store did not answer.",
            registry=on,
        )
        self.ready = Gauge(
            "exemplar_ready", "1 if the process was ready at its last look; there is one every 5 s.", registry=on
        )
        self.unreadable = Gauge(
            "exemplar_unreadable_records",
            "Stored records that this process met, can't read and skips, by kind; `/readyz` names them.",
            ["kind"],
            registry=on,
        )
        self.build_info = Gauge(
            "exemplar_build_info", "Always 1; the label holds the version.", ["version"], registry=on
        )

    def asked_for(self, categories: Iterable[str]) -> None:
        """Count one request for each of these taught categories."""
        for name in categories:
            self._of(self.category_requests, name).inc()

    def store_away(self, away: bool) -> None:
        """Record that the store stopped answering requests, or answers again."""
        self.redis_away.set(away)
        if away:
            self.redis_outages.inc()

    def taught(self, category: str, *, gain: float) -> None:
        """Record the IoU gain of a new adapter over the words alone."""
        self._of(self.example_gain, category).observe(gain)

    def _of(self, metric: Labelled, category: str) -> Labelled:
        if not self._most_categories:
            return metric
        if len(self._categories) < self._most_categories:
            self._categories.add(category)
        return metric.labels(category if category in self._categories else "other")
