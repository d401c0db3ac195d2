"""What the gate decided of this encoder, as people read it: rule by rule, and image by image."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae.errors import DataError
from mae.files import read_json

_RULES = {
    "margin": "must gain",
    "floor": "at least",
    "ceiling": "at most",
    "max_drop": "may fall by",
    "max_drift": "data may drift by",
    "comparison": "wins on the same images",
    "approval": "a person approves",
}
_ROOM = 1.25  # of the picture, beyond what it shows


@dataclass(frozen=True)
class Check:
    """One rule. challenger, champion: None where there is no such number."""

    metric: str
    rule: str
    challenger: float | None
    champion: float | None
    bound: float | None
    passed: bool
    reason: str

    @property
    def rule_in_words(self) -> str:
        return _RULES.get(self.rule, self.rule.replace("_", " "))


@dataclass(frozen=True)
class Duel:
    """Champion and challenger on the same images: shares classified rightly, and the interval of
    their difference by a paired bootstrap. The challenger must gain more than `margin`."""

    images: int
    champion: float
    challenger: float
    difference: float
    low: float
    high: float
    margin: float
    win_share: float
    confidence: float
    resamples: int
    remarks: list[str]

    def place(self, difference: float) -> float:
        """Return where a difference stands on a line with 0 in its middle, from 0 to 1."""
        reach = _ROOM * max(map(abs, (self.low, self.high, self.difference, self.margin, 1e-6)))
        return 0.5 + difference / (2 * reach)

    @property
    def outcome(self) -> str:
        """better or worse where so many resamples say so as the gate asks for; else level."""
        if self.win_share >= self.confidence:
            return "better"
        return "worse" if self.win_share <= 1 - self.confidence else "level"


@dataclass(frozen=True)
class Decision:
    """What became of the encoder, why, and every number that led there."""

    promote: bool
    reason: str
    checks: list[Check]
    challenger: dict[str, float]
    champion: dict[str, float] | None
    duel: Duel | None
    remarks: list[str]
    facts: list[tuple[str, str]]

    @property
    def headline(self) -> str:
        if self.promote:
            return "Promoted" if self.champion is not None else "Promoted, the first"
        return "The champion stays" if self.champion is not None else "Not promoted"

    def metrics(self) -> Iterator[tuple[str, float | None, float | None]]:
        """Yield (name, champion's, challenger's) of every metric that either has."""
        before = self.champion or {}
        for name in sorted(self.challenger.keys() | before.keys()):
            yield name, before.get(name), self.challenger.get(name)


def read_decision(path: Path) -> Decision:
    """Return what the gate wrote. Raises DataError where there is no whole decision."""
    try:
        return _decision(read_json(path))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: there is no decision to show") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is no decision of the gate ({what})") from None


def _decision(content: dict[str, Any]) -> Decision:
    champion = content["champion"]
    return Decision(
        promote=content["promote"],
        reason=content["reason"].rstrip("."),
        checks=[_check(one) for one in content["checks"]],
        challenger=_finite(content["challenger"]),
        champion=None if champion is None else _finite(champion),
        duel=_duel(content["comparison"]) if content.get("comparison") else None,
        remarks=list(content.get("remarks") or ()),
        facts=list(_facts(content)),
    )


def _check(content: dict[str, Any]) -> Check:
    return Check(
        metric=content["metric"],
        rule=content["rule"],
        challenger=_number(content["challenger"]),
        champion=_number(content["champion"]),
        bound=_number(content["bound"]),
        passed=content["passed"],
        reason=content["reason"],
    )


def _duel(content: dict[str, Any]) -> Duel:
    return Duel(
        images=content["images"],
        champion=content["champion_accuracy"],
        challenger=content["challenger_accuracy"],
        margin=content.get("margin", 0.0),
        remarks=list(_of_the_exam(content)),
        **{
            name: content[name]
            for name in ("difference", "low", "high", "win_share", "confidence", "resamples")
        },
    )


def _of_the_exam(content: dict[str, Any]) -> Iterator[str]:
    if "only_champion" in content and "only_challenger" in content:
        yield (
            f"{content['only_challenger']:,} images only the challenger has right, "
            f"{content['only_champion']:,} only the champion."
        )
    exam = content.get("exam") or {}
    for name, what in (("vanished", "are gone from the data"), ("relabelled", "changed label")):
        if exam.get(name):
            yield f"{exam[name]:,} of the exam's {exam['images']:,} images {what}."


def _facts(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if content.get("artifact"):
        yield "Decided on", f"{content['artifact']} for {content.get('stage') or 'no stage'}"
    yield "Champion", content.get("champion_version") or "none before"
    if content.get("commit"):
        yield "Challenger's commit", content["commit"]
    for out, found in sorted((content.get("data_fingerprint") or {}).items()):
        yield f"Data, {Path(out).name}", found
    drift = [
        f"{name.replace('_', ' ')} {value:.3g}"
        for name, value in sorted(_finite(content.get("drift") or {}).items())
    ]
    if drift:
        yield "Drift since the champion's", ", ".join(drift)
    if approval := content.get("approval"):
        said = approval.get("reason")
        yield "A person", f"{approval['answer']}, by {approval['by']}{f': {said}' if said else ''}"
    if content.get("decided_at"):
        yield "When", content["decided_at"]


def _finite(numbers: dict[str, Any]) -> dict[str, float]:
    """Return the metrics that are numbers; what is not finite is written as words."""
    return {name: found for name, value in numbers.items() if (found := _number(value)) is not None}


def _number(value: Any) -> float | None:
    """Return a finite number, None for null or one that is not finite. Raises TypeError."""
    if value is None or value in ("NaN", "Infinity", "-Infinity"):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value) if math.isfinite(value) else None
