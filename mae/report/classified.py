"""Which classes the encoder confuses, and how far its confidence can be trusted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mae.report.findings import Findings, reading
from mae.report.protocols import title_of

_PAIRS = 3

Scores = dict[str, Any]
"""mae.evaluation.scores.Scores as JSON."""


@dataclass(frozen=True)
class Classified:
    """The classes of the most telling protocol that has them, over all of its seeds.

    how: in words. classes: in the order of the matrix. confusion: images of class i taken for j at
    [i][j], or None where there were too many classes to write it down, or the dataset that names
    them is gone. calibration_error: the mean over the seeds, where it is known.
    """

    protocol: str
    how: str
    classes: list[str]
    confusion: list[list[int]] | None
    calibration_error: float | None
    balanced: float

    @property
    def shares(self) -> list[list[float]]:
        """The confusion matrix as shares of each class's images; a class without any is all 0."""
        return [[count / max(1, sum(row)) for count in row] for row in self.confusion or []]

    @property
    def most_confused(self) -> list[tuple[str, str, float]]:
        """The pairs (class, taken for, share of the class) with the largest shares."""
        pairs = [
            (self.classes[i], self.classes[j], share)
            for i, row in enumerate(self.shares)
            for j, share in enumerate(row)
            if i != j and share > 0
        ]
        return sorted(pairs, key=lambda pair: -pair[2])[:_PAIRS]


def classified(findings: Findings) -> Classified | None:
    """Return the classes by the most telling protocol that measured them, if any did."""
    for protocol, runs_of in _RUNS.items():
        result = findings.results.get(protocol)
        if result is None or result.skipped:
            continue
        with reading(findings.root, protocol):
            runs = runs_of(result.detail)
            if runs:
                images = findings.datasets.get("images")
                return _over(protocol, runs, images.classes if images else ())
    return None


def _over(protocol: str, runs: list[Scores], classes: tuple[str, ...]) -> Classified:
    # JSON does not keep the order of per_class, which is that of the dataset's classes.
    named = set(classes) == set(runs[0]["per_class"])
    matrices = [run["confusion"] for run in runs if run["confusion"] and named]
    errors = [run["calibration_error"] for run in runs if run["calibration_error"] is not None]
    labels = f", {runs[0]['labels']:,} labels" if "labels" in runs[0] else ""
    return Classified(
        protocol=protocol,
        how=f"{title_of(protocol)}{labels}",
        classes=list(classes),
        confusion=_sum(matrices) if matrices else None,
        calibration_error=sum(errors) / len(errors) if errors else None,
        balanced=sum(run["balanced"] for run in runs) / len(runs),
    )


def _sum(matrices: list[list[list[int]]]) -> list[list[int]]:
    return [
        [sum(counts) for counts in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)
    ]


def _finetuned(detail: dict[str, Any]) -> list[Scores]:
    """Return the runs at the budget with the most labels."""
    budgets = [part["arms"]["pretrained"]["runs"] for part in detail.values() if "arms" in part]
    return max(budgets, key=lambda runs: runs[0]["labels"], default=[])


def _probed(detail: dict[str, Any]) -> list[Scores]:
    return detail.get("pretrained", {}).get("runs", [])


def _logistic(detail: dict[str, Any]) -> list[Scores]:
    ours = detail.get("logistic", {}).get("pretrained")
    return [ours] if ours else []


def _neighbours(detail: dict[str, Any]) -> list[Scores]:
    return [detail["pretrained"]] if "pretrained" in detail else []


_RUNS: dict[str, Callable[[dict[str, Any]], list[Scores]]] = {
    "finetune": _finetuned,
    "linear_probe": _probed,
    "linear": _logistic,
    "knn": _neighbours,
}
