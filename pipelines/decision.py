"""What the gate decided, as a record: every number, every reason, what people said of it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mae.errors import MaestroError
from mae.files import read_json, write_json

Rule = Literal["margin", "floor", "ceiling", "max_drop", "max_drift", "comparison", "approval"]
Answer = Literal["waiting", "approved", "refused"]

DRIFT = "validate.drift_"


@dataclass(frozen=True)
class Check:
    """One condition: a value held against a bound, and how that went."""

    metric: str
    rule: Rule
    challenger: float | None
    champion: float | None
    bound: float
    passed: bool
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Both encoders on the same images: shares classified rightly by a probe on their features.

    difference: the challenger's gain, with the `confidence` interval low to high of a paired
    bootstrap; win_share: of its resamples, those in which the gain is above `margin`.
    only_champion, only_challenger: images that one alone had right. exam: which images these are.
    """

    images: int
    champion_accuracy: float
    challenger_accuracy: float
    difference: float
    low: float
    high: float
    win_share: float
    confidence: float
    resamples: int
    margin: float
    feature: str
    only_champion: int
    only_challenger: int
    exam: dict[str, Any]


@dataclass(frozen=True)
class NotCompared:
    """Why there is no comparison. refused: nothing may be promoted without it; else the recorded
    metrics decide alone."""

    reason: str
    refused: bool


@dataclass(frozen=True)
class Approval:
    answer: Answer
    by: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Circumstances:
    """What was decided on. data_fingerprint: hash of every out that is made from the sources."""

    artifact: str = ""
    stage: str = ""
    champion_version: str | None = None
    commit: str | None = None
    data_fingerprint: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Decision:
    """`promote`, one sentence of reasons, and every number that led there."""

    promote: bool
    reason: str
    checks: tuple[Check, ...]
    challenger: dict[str, float]
    champion: dict[str, float] | None
    comparison: Comparison | None = None
    remarks: tuple[str, ...] = ()
    circumstances: Circumstances = Circumstances()
    approval: Approval | None = None
    decided_at: str = ""

    @property
    def drift(self) -> dict[str, float]:
        """How far each column of the data has moved since the champion's."""
        return {
            name.removeprefix(DRIFT): value
            for name, value in self.challenger.items()
            if name.startswith(DRIFT)
        }

    def answered(self, approval: Approval) -> "Decision":
        """Return the decision with what a person said of it."""
        yes = approval.answer == "approved"
        words = {"waiting": "a person has to approve it", "approved": "approved"}
        said = words.get(approval.answer, "refused")
        by = f" ({approval.by})" if approval.by else ""
        reason = f"{said}{by}{': ' + approval.reason if approval.reason else ''}"
        kept = tuple(check for check in self.checks if check.rule != "approval")
        check = Check("approval", "approval", float(yes), None, 1.0, yes, reason)
        reasons = [check.reason for check in kept]
        return replace(
            self,
            promote=yes and all(one.passed for one in kept),
            reason="; ".join([*reasons, reason] if yes else [reason]),
            checks=(*kept, check),
            approval=approval,
        )

    def write(self, path: Path) -> None:
        content = asdict(self)
        circumstances = content.pop("circumstances")
        content |= {
            **circumstances,
            "drift": self.drift,
            "decided_at": self.decided_at or datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(path, json.loads(json.dumps(content), parse_constant=str))

    @classmethod
    def read(cls, path: Path) -> "Decision":
        """Read what `write` wrote. Raises MaestroError for a file that is none."""
        try:
            content = read_json(path)
            names = Circumstances.__dataclass_fields__
            compared, approval = content["comparison"], content["approval"]
            return cls(
                promote=content["promote"],
                reason=content["reason"],
                checks=tuple(Check(**check) for check in content["checks"]),
                challenger=_numbers(content["challenger"]),
                champion=content["champion"] and _numbers(content["champion"]),
                comparison=Comparison(**compared) if compared else None,
                remarks=tuple(content["remarks"]),
                circumstances=Circumstances(**{name: content[name] for name in names}),
                approval=Approval(**approval) if approval else None,
                decided_at=content["decided_at"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MaestroError(f"{path} is no decision of the gate ({error!r})") from None


def _numbers(written: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in written.items()}
