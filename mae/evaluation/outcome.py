"""What every protocol returns.

A protocol is a module of this package with

    run(params: Params, shards: Path, pretrained: Path, device: torch.device) -> Outcome

where `shards` is a dataset's folder and `pretrained` the folder of the pretrained encoder.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The result of a protocol.

    numbers: flat, what is compared between runs. detail: whatever else can be written as JSON.
    skipped: a sentence on why nothing was measured (numbers is empty then), or None.
    """

    protocol: str
    numbers: dict[str, float] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and the sample standard deviation (0 for a single seed)."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), spread
