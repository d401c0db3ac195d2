"""What every protocol returns.

A protocol is a module of this package with

    run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome

where `shards` is a dataset's folder, `pretrained` the folder of the pretrained encoder, and
`pictures` an existing folder for what it draws. With several processes all call it and all get
the same Outcome; the leading one draws.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mae.evaluation.arms import words


@dataclass(frozen=True)
class Compared:
    """What the pretrained encoder reaches on a task beside one baseline: shares from 0 to 1.

    task: in words, as in "Fine-tuning, 10 labels per class". metric: as in "top-1 accuracy".
    pretrained, values: one number for each seed, of the encoder and of the baseline; paired: the
    same seed of both learned from the same labels. baseline: its name in words, as in "from
    scratch". images: how many test images were measured. deciding: it is what MAE is for, and
    says whether pretraining was worth it.
    """

    task: str
    metric: str
    pretrained: tuple[float, ...]
    baseline: str
    values: tuple[float, ...]
    paired: bool = False
    images: int | None = None
    deciding: bool = False


@dataclass(frozen=True)
class Outcome:
    """The result of a protocol.

    numbers: flat, what is compared between runs; the encoder's own have plain names as in
    `accuracy`, a baseline's end in its name as in `accuracy_random`, a standard deviation over
    seeds in `_std`. comparisons: the same for readers, the most telling first. detail: whatever
    else can be written as JSON. expected: the band {low, high, source} published for this very
    setting, or None. skipped: a sentence on why nothing was measured (all else is empty then).
    """

    protocol: str
    numbers: dict[str, float] = field(default_factory=dict)
    comparisons: tuple[Compared, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] | None = None
    skipped: str | None = None


def compared(
    task: str,
    values: Mapping[str, Sequence[float]],
    images: int,
    *,
    metric: str = "top-1 accuracy",
    paired: bool = False,
    deciding: Sequence[str] = (),
) -> tuple[Compared, ...]:
    """Return the arm `pretrained` beside each other one; values: by arm, one for each seed.

    deciding: the names of the baselines that count.
    """
    return tuple(
        Compared(
            task=task,
            metric=metric,
            pretrained=tuple(values["pretrained"]),
            baseline=words(name),
            values=tuple(reached),
            paired=paired,
            images=images,
            deciding=name in deciding,
        )
        for name, reached in values.items()
        if name != "pretrained"
    )


def suffix_of(arm: str) -> str:
    """Return what the names of an arm's numbers end in: nothing for the pretrained encoder's."""
    return "" if arm == "pretrained" else f"_{arm}"


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and the sample standard deviation (0 for a single seed)."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), spread
