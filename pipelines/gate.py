"""Champion or challenger: a pure decision from two sets of numbers and a rule."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mae.errors import DataError
from mae.files import read_json, write_json
from mae.params import GateParams

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Check:
    """One condition: a value held against a bound, and how that went."""

    metric: str
    rule: Literal["margin", "floor", "max_drop"]
    challenger: float | None
    champion: float | None
    bound: float
    passed: bool
    reason: str


@dataclass(frozen=True)
class Decision:
    """`promote`, one sentence of reasons, and every number that led there."""

    promote: bool
    reason: str
    checks: tuple[Check, ...]
    challenger: dict[str, float]
    champion: dict[str, float] | None

    def write(self, path: Path) -> None:
        write_json(path, json.loads(json.dumps(asdict(self)), parse_constant=str))


def decide(champion: Metrics | None, challenger: Metrics, rule: GateParams) -> Decision:
    """Compare two sets of metrics; without a champion only the floors must hold.

    A number that is missing or not finite never passes: what cannot be compared is not promoted.
    """
    checks = [_floor(metric, challenger, bound) for metric, bound in sorted(rule.floors.items())]
    if champion is None:
        checks.append(_exists(rule.metric, challenger))
    else:
        checks.append(_margin(champion, challenger, rule))
        for metric, bound in sorted(rule.max_drop.items()):
            checks.append(_max_drop(metric, champion, challenger, bound))
    failed = [check.reason for check in checks if not check.passed]
    passed = [check.reason for check in checks]
    return Decision(
        promote=not failed,
        reason="; ".join(failed or (passed if champion else ["no champion yet", *passed])),
        checks=tuple(checks),
        challenger=dict(challenger),
        champion=None if champion is None else dict(champion),
    )


def _number(metrics: Metrics, metric: str) -> float | None:
    value = metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def _floor(metric: str, challenger: Metrics, bound: float) -> Check:
    value = _number(challenger, metric)
    passed = value is not None and value >= bound
    reason = f"{metric} {_show(value)} {'reaches' if passed else 'misses'} the floor {bound:g}"
    return Check(metric, "floor", value, None, bound, passed, reason)


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
