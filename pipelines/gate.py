"""Champion or challenger: a pure decision from numbers and a rule."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae.errors import DataError
from mae.files import read_json
from mae.params import GateParams
from pipelines.decision import DRIFT, Check, Comparison, Decision, NotCompared

Metrics = Mapping[str, float]

# Accuracies of frozen features on the test images, of which the exam is the part both have met:
# where that was sat, numbers recorded on other images at other times decide nothing.
_ON_TEST_IMAGES = ("knn.accuracy", "linear.accuracy", "linear_probe.accuracy")


def decide(
    champion: Metrics | None,
    challenger: Metrics,
    rule: GateParams,
    compared: Comparison | NotCompared | None = None,
) -> Decision:
    """Compare two sets of metrics; without a champion only floors and ceilings must hold.

    compared: how both did on the same images, where they were asked to. A number that is missing
    or not finite never passes: what cannot be compared is not promoted.
    """
    checks = [_floor(metric, challenger, bound) for metric, bound in sorted(rule.floors.items())]
    for metric, bound in sorted(rule.ceilings.items()):
        checks.append(_ceiling(metric, challenger, bound))
    remarks: list[str] = []
    if champion is None:
        checks.append(_exists(rule.metric, challenger))
    else:
        checks += _against(champion, challenger, rule, compared, remarks)
    failed = [check.reason for check in checks if not check.passed]
    passed = [check.reason for check in checks]
    return Decision(
        promote=not failed,
        reason="; ".join(failed or (passed if champion else ["no champion yet", *passed])),
        checks=tuple(checks),
        challenger=dict(challenger),
        champion=None if champion is None else dict(champion),
        comparison=compared if isinstance(compared, Comparison) else None,
        remarks=tuple(remarks),
    )


def _against(
    champion: Metrics,
    challenger: Metrics,
    rule: GateParams,
    compared: Comparison | NotCompared | None,
    remarks: list[str],
) -> list[Check]:
    checks = []
    margin = _margin(champion, challenger, rule)
    if isinstance(compared, Comparison):
        checks.append(_compared(compared))
    elif compared is not None and compared.refused:
        bound = rule.comparison.confidence if rule.comparison else 0.0
        reason = f"the two cannot be compared on the same images: {compared.reason}"
        checks.append(Check("exam.accuracy", "comparison", None, None, bound, False, reason))
    elif compared is not None:
        remarks.append(f"the recorded metrics decide alone: {compared.reason}")
    if isinstance(compared, Comparison) and rule.metric in _ON_TEST_IMAGES:
        remarks.append(f"as recorded, each on the test images of its time: {margin.reason}")
    else:
        checks.append(margin)
    for metric, bound in sorted(rule.max_drop.items()):
        checks.append(_max_drop(metric, champion, challenger, bound))
    if rule.max_drift is not None:
        checks.append(_max_drift(challenger, rule.max_drift))
    return checks


def _compared(found: Comparison) -> Check:
    passed = found.win_share >= found.confidence
    reason = (
        f"on the same {found.images} images the challenger has {found.challenger_accuracy:.2%} "
        f"right and the champion {found.champion_accuracy:.2%}: it gains more than "
        f"{found.margin:g} in {found.win_share:.1%} of resamples, "
        f"{'at least' if passed else 'fewer than'} {found.confidence:.0%}"
    )
    challenger, champion = found.challenger_accuracy, found.champion_accuracy
    metric = "exam.accuracy"
    return Check(metric, "comparison", challenger, champion, found.confidence, passed, reason)


def _max_drift(challenger: Metrics, bound: float) -> Check:
    found = {name: value for name, value in challenger.items() if name.startswith(DRIFT)}
    if not found:
        reason = "how far the data have moved was not measured: see validate.drift"
        return Check("drift", "max_drift", None, None, bound, False, reason)
    worst = max(found, key=lambda name: (not math.isfinite(found[name]), found[name]))
    value = _number(found, worst)
    passed = value is not None and value <= bound
    reason = (
        f"{worst.removeprefix(DRIFT)} of the data moved most, by {_show(value)}, "
        f"{'within' if passed else 'beyond'} {bound:g}"
    )
    return Check(worst, "max_drift", value, None, bound, passed, reason)


def _number(metrics: Metrics, metric: str) -> float | None:
    value = metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def _floor(metric: str, challenger: Metrics, bound: float) -> Check:
    value = _number(challenger, metric)
    passed = value is not None and value >= bound
    reason = f"{metric} {_show(value)} {'reaches' if passed else 'misses'} the floor {bound:g}"
    return Check(metric, "floor", value, None, bound, passed, reason)


def _ceiling(metric: str, challenger: Metrics, bound: float) -> Check:
    value = _number(challenger, metric)
    passed = value is not None and value <= bound
    reason = f"{metric} {_show(value)} {'keeps to' if passed else 'breaks'} the ceiling {bound:g}"
    return Check(metric, "ceiling", value, None, bound, passed, reason)


def _exists(metric: str, challenger: Metrics) -> Check:
    value = _number(challenger, metric)
    return Check(
        metric, "margin", value, None, 0.0, value is not None, f"{metric} is {_show(value)}"
    )


def _margin(champion: Metrics, challenger: Metrics, rule: GateParams) -> Check:
    ours, theirs = _number(challenger, rule.metric), _number(champion, rule.metric)
    if ours is None or theirs is None:
        passed, reason = False, _incomparable(rule.metric, ours, theirs)
    else:
        gain = ours - theirs if rule.better == "higher" else theirs - ours
        passed = gain >= rule.margin
        reason = (
            f"{rule.metric} {ours:.6g} against the champion's {theirs:.6g} gains {gain:+.6g}, "
            f"{'at least' if passed else 'less than'} the margin {rule.margin:g}"
        )
    return Check(rule.metric, "margin", ours, theirs, rule.margin, passed, reason)


def _max_drop(metric: str, champion: Metrics, challenger: Metrics, bound: float) -> Check:
    ours, theirs = _number(challenger, metric), _number(champion, metric)
    if ours is None or theirs is None:
        passed, reason = False, _incomparable(metric, ours, theirs)
    else:
        passed = theirs - ours <= bound
        reason = (
            f"{metric} {ours:.6g} against the champion's {theirs:.6g} falls "
            f"{'no further' if passed else 'further'} than {bound:g}"
        )
    return Check(metric, "max_drop", ours, theirs, bound, passed, reason)


def _incomparable(metric: str, ours: float | None, theirs: float | None) -> str:
    return f"{metric} cannot be compared: challenger {_show(ours)}, champion {_show(theirs)}"


def _show(value: float | None) -> str:
    return "missing or not finite" if value is None else f"{value:.6g}"


def flat_metrics(files: Mapping[str, Any]) -> dict[str, float]:
    """Return `{file.key: number}` from `{file: content}`; what is no number is left out."""
    flat: dict[str, float] = {}

    def add(name: str, content: Any) -> None:
        if isinstance(content, dict):
            for key, value in content.items():
                add(f"{name}.{key}", value)
        elif isinstance(content, int | float) and not isinstance(content, bool):
            flat[name] = float(content)

    for name, content in files.items():
        add(name, content)
    return flat


def read_metrics(folder: Path) -> dict[str, float]:
    """Return the numbers of every JSON file in `folder`. Raises DataError where there is none."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DataError(f"{folder} holds no metrics: run the pipeline first")
    return flat_metrics({file.stem: read_json(file) for file in files})
