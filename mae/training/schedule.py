"""The learning rate of each step: linear warm-up, then half a cosine."""

import math
from dataclasses import dataclass

from mae.params import OptimParams


@dataclass(frozen=True)
class Schedule:
    """lr(step) for step in 0 .. total - 1; the first warm-up step is already above zero."""

    peak: float
    floor: float
    warmup: int
    total: int

    @classmethod
    def from_params(cls, optim: OptimParams, images: int) -> "Schedule":
        return cls(
            peak=optim.lr(images),
            floor=optim.min_lr,
            warmup=optim.warmup_steps(images),
            total=optim.total_steps(images),
        )

    def lr(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.total - self.warmup)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
