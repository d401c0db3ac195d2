"""What validation found, and whether the data may be trained on: data/validation/verdict.json.

It holds neither ids nor times, so equal data gives equal bytes, and training depends on it alone.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mae.data.dataset import DatasetInfo
from mae.errors import DataError
from mae.files import read_json
from mae.params.validation import Severity

SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")
_BOUNDS = {
    "min_value": "at least",
    "max_value": "at most",
    "value_set": "values allowed:",
}


@dataclass(frozen=True)
class Finding:
    """What one expectation found. observed: the value, or the share of rows that break it."""

    dataset: str
    expectation: str
    column: str | None
    severity: Severity
    success: bool
    observed: Any
    limit: dict[str, Any]
    subject: str
    advice: str

    def sentence(self) -> str:
        wanted = [f"{_BOUNDS[name]} {_plain(value)}" for name, value in self.limit.items()]
        limit = " and ".join(wanted) or "none allowed"
        return f"{self.dataset}: {self.subject} is {_plain(self.observed)} ({limit}): {self.advice}"


@dataclass(frozen=True)
class Verdict:
    """Whether the data may be trained on. fingerprints: of each dataset judged."""

    passed: bool
    fingerprints: dict[str, str]
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, fingerprints: dict[str, str], findings: list[Finding]) -> "Verdict":
        passed = all(one.success for one in findings if one.severity == "critical")
        return cls(passed, fingerprints, tuple(findings))

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "fingerprints": self.fingerprints,
            "expectations": [asdict(finding) for finding in self.findings],
        }

    @classmethod
    def read(cls, path: Path) -> "Verdict":
        """Read a verdict.json. Raises DataError where there is none, or another kind of file."""
        try:
            content = read_json(path)
            names = [field.name for field in fields(Finding)]
            findings = tuple(
                Finding(**{name: found[name] for name in names})
                for found in content["expectations"]
            )
            return cls(content["passed"], content["fingerprints"], findings)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: run `dvc repro validate` first") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is damaged ({error!r}): run `dvc repro --force --single-item validate`"
            ) from None

    def demand_valid(self, info: DatasetInfo) -> None:
        """Raise DataError when the data failed, or when another state of them was judged."""
        self.demand_passed()
        if self.fingerprints.get(info.dataset) != info.fingerprint:
            raise DataError(
                f"{info.dataset}: the shards have changed since they were validated: "
                "run `dvc repro validate` first"
            )

    def failures(self, severity: Severity) -> list[Finding]:
        return [one for one in self.findings if one.severity == severity and not one.success]

    def worst_first(self) -> list[Finding]:
        """Return all that failed, the most severe first."""
        return [finding for severity in SEVERITIES for finding in self.failures(severity)]

    def demand_passed(self) -> None:
        """Raise DataError that names every critical failure, its value and its limit."""
        failures = [failure.sentence() for failure in self.failures("critical")]
        if failures:
            raise DataError("the data failed validation. " + "; ".join(failures))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nothing"
    return str(value)
