"""What a service serves, and how much it takes on."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """How much a service takes on; beyond it a request is refused with a reason.

    max_bytes: of a request's body. max_pixels: of an image, judged before it is decoded. queue:
    images accepted and not yet answered. connections: at a time. seconds: for a request to arrive
    whole, and for an answer to be taken. held_bytes: of all bodies and decoded images together.
    """

    max_bytes: int = 32_000_000
    max_pixels: int = 50_000_000
    queue: int = 256
    connections: int = 256
    seconds: float = 30.0
    held_bytes: int = 1 << 30


@dataclass(frozen=True)
class ServingSettings:
    """model, classifier: paths or names of the registry. index: a folder of `mae search build`.

    batch: images of one inference; wait_seconds: how long the first of them waits for others.
    threads: of an inference, 0 leaves it to onnxruntime; workers: threads that decode.
    reload_seconds: between two looks for a newer model; 0: never.
    """

    model: str
    classifier: str | None = None
    index: Path | None = None
    device: str = "auto"
    threads: int = 0
    workers: int = 2
    batch: int = 32
    wait_seconds: float = 0.002
    reload_seconds: float = 10.0
    limits: Limits = field(default_factory=Limits)
