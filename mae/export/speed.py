"""What the benchmark found: every contender's latency and throughput, and what follows."""

import csv
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mae.files import replacing_file

TORCH, COMPILED = "torch", "torch_compile"
PERCENTILES = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}

_LABELS = {TORCH: "torch", COMPILED: "torch.compile"}


@dataclass(frozen=True)
class Timing:
    """One contender at one batch.

    contender: TORCH, COMPILED or the precision of a file. Percentiles, in milliseconds of a call,
    and images per second are those of a turn: the median over the rounds. first_call_s: of the
    first call, which compiles where something compiles. min_cosine: of any image's cls with
    torch's on the CPU.
    """

    contender: str
    device: str
    batch: int
    calls: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    first_call_s: float
    min_cosine: float

    @property
    def key(self) -> str:
        return f"{self.contender}_{self.device}"

    @property
    def label(self) -> str:
        return label_of(self.contender)


def label_of(contender: str) -> str:
    """Return a contender's name as people say it."""
    return _LABELS.get(contender, f"ONNX Runtime {contender.replace('_', ' ')}")


@dataclass(frozen=True)
class Speed:
    """Every timing; left_out: why others are not there, by contender_device.

    device: where the encoder runs by default. threads: of torch, and of onnxruntime (0: its own
    choice, which is one for each core). context: the machine, versions and parameters behind it.
    """

    timings: list[Timing]
    left_out: dict[str, str]
    device: str
    threads: dict[str, int]
    context: dict[str, Any] = field(default_factory=dict)

    @property
    def smallest_batch(self) -> int:
        return min(timing.batch for timing in self.timings)

    @property
    def latencies(self) -> list[Timing]:
        """The timings at the smallest batch."""
        return [timing for timing in self.timings if timing.batch == self.smallest_batch]

    @property
    def throughputs(self) -> list[Timing]:
        """Each contender's timing at the batch where it does most images per second."""
        best: dict[str, Timing] = {}
        for timing in self.timings:
            before = best.get(timing.key)
            if before is None or timing.images_per_second > before.images_per_second:
                best[timing.key] = timing
        return list(best.values())

    def is_default(self, timing: Timing) -> bool:
        """Whether it is of encoder.onnx where that runs by default."""
        return (timing.contender, timing.device) == ("fp32", self.device)

    def numbers(self) -> dict[str, float]:
        """Return flat numbers: of encoder.onnx by default without a suffix, then of everything as
        <number>_<contender>_<device>. Latencies are those of the smallest batch."""
        latencies = [
            (name, timing, getattr(timing, name))
            for timing in self.latencies
            for name in PERCENTILES
        ]
        rates = [("images_per_second", one, one.images_per_second) for one in self.throughputs]
        numbers: dict[str, float] = {}
        for name, timing, value in [*latencies, *rates]:
            numbers[f"{name}_{timing.key}"] = value
            if self.is_default(timing):
                numbers[name] = value
        return numbers

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": 1,
            "timings": [asdict(timing) for timing in self.timings],
            "left_out": self.left_out,
            "device": self.device,
            "threads": self.threads,
            "context": self.context,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Speed":
        """Inverse of to_dict. Raises KeyError, TypeError or ValueError for anything else."""
        if not content["timings"]:
            raise ValueError("it holds no timings")
        speed = cls(
            timings=[Timing(**one) for one in content["timings"]],
            **{name: content[name] for name in ("left_out", "device", "threads", "context")},
        )
        if not any(map(speed.is_default, speed.timings)):
            raise ValueError(f"encoder.onnx is not timed on {speed.device}")
        return speed


def write_timings(path: Path, speed: Speed) -> None:
    """Write a CSV file with a row for each timing."""
    with (
        replacing_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        names = [one.name for one in fields(Timing)]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(timing) for timing in speed.timings)
