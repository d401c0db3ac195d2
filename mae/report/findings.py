"""Everything a report tells, read from what the stages left; what is not there is named."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mae.data.dataset import DatasetInfo, read_dataset_info
from mae.errors import DataError, MaestroError
from mae.evaluation.outcome import Compared
from mae.export.speed import Speed
from mae.files import read_json
from mae.model.artifact import read_info
from mae.params import read_params
from mae.report.exported import Exported
from mae.report.protocols import PROTOCOLS, stage_of, title_of

Found = TypeVar("Found")

DATASETS = ("images", "scenes")


@dataclass(frozen=True)
class Result:
    """artifacts/results/<protocol>.json. encoder: what was measured, as encoder.json has it."""

    protocol: str
    numbers: dict[str, float] = field(default_factory=dict)
    comparisons: tuple[Compared, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] | None = None
    skipped: str | None = None
    encoder: dict[str, Any] | None = None
    context: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, protocol: str, content: dict[str, Any]) -> "Result":
        """Raises TypeError or ValueError for what is no protocol's result."""
        return cls(
            protocol=protocol,
            numbers=content.get("numbers") or {},
            comparisons=tuple(_compared(one) for one in content.get("comparisons") or ()),
            detail=content.get("detail") or {},
            expected=content.get("expected"),
            skipped=content.get("skipped"),
            encoder=content.get("encoder"),
            context=content.get("context") or {},
        )

    @property
    def title(self) -> str:
        return title_of(self.protocol)


def _compared(content: dict[str, Any]) -> Compared:
    arms = {name: tuple(float(value) for value in content[name]) for name in _ARMS}
    if not all(arms.values()):
        raise ValueError(f"a comparison without values: {content.get('task')}")
    return Compared(**{**content, **arms})


_ARMS = ("pretrained", "values")


@dataclass(frozen=True)
class Curve:
    """What a CSV file holds by step: each column's values, None where a step has none."""

    steps: list[int]
    columns: dict[str, list[float | None]]

    def points(self, column: str) -> tuple[list[int], list[float]]:
        """Return the steps that have a value in a column, and the values."""
        values = zip(self.steps, self.columns.get(column, []), strict=False)
        known = [(step, value) for step, value in values if value is not None]
        return [step for step, _ in known], [value for _, value in known]


@dataclass(frozen=True)
class Findings:
    """None, or an absent key, where a stage has not run; `missing` says which and how to get it."""

    root: Path
    datasets: dict[str, DatasetInfo] = field(default_factory=dict)
    verdict: dict[str, Any] | None = None
    encoder: dict[str, Any] | None = None
    losses: Curve | None = None
    observed: Curve | None = None
    results: dict[str, Result] = field(default_factory=dict)
    exported: Exported | None = None
    speed: Speed | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def reconstruction(self) -> Path | None:
        path = self.root / "artifacts/plots/pretrain/reconstruction.png"
        return path if path.is_file() else None

    def pictures(self, protocol: str) -> list[Path]:
        """Return what a protocol drew."""
        return sorted((self.root / "artifacts/plots" / protocol).glob("*.png"))


def read_findings(root: Path) -> Findings:
    """Read what the stages left below `root`. Raises DataError for a file that is damaged."""
    reader = _Reader(root)
    return Findings(
        root=root,
        datasets=reader.datasets(),
        verdict=reader.json("data/validation/verdict.json", "validate"),
        encoder=reader.encoder(),
        losses=reader.curve("loss.csv"),
        observed=reader.curve("observed.csv"),
        results=reader.results(),
        exported=reader.parsed("artifacts/export/export.json", "export", Exported.from_dict),
        speed=reader.parsed("artifacts/benchmark/latency.json", "benchmark", Speed.from_dict),
        missing=reader.missing,
    )


class _Reader:
    """Reads below a root, and notes in `missing` what is not there."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.missing: list[str] = []

    def json(self, name: str, stage: str) -> dict[str, Any] | None:
        path = self._found(name, stage)
        if path is None:
            return None
        try:
            return read_json(path)
        except ValueError as error:
            raise _damaged(path, error, stage) from None

    def parsed(
        self, name: str, stage: str, parse: Callable[[dict[str, Any]], Found]
    ) -> Found | None:
        content = self.json(name, stage)
        if content is None:
            return None
        try:
            return parse(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(self._root / name, error, stage) from error

    def datasets(self) -> dict[str, DatasetInfo]:
        return {
            name: read_dataset_info(self._root / "data/shards" / name)
            for name in DATASETS
            if self._found(f"data/shards/{name}/dataset.json", f"shard@{name}")
        }

    def encoder(self) -> dict[str, Any] | None:
        found = self._found("artifacts/pretrain/encoder.json", "pretrain")
        return read_info(found.parent) if found else None

    def curve(self, name: str) -> Curve | None:
        path = self._found(f"artifacts/plots/pretrain/{name}", "pretrain")
        if path is None:
            return None
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            steps = [int(row["step"]) for row in rows]
            names = [name for name in rows[0] if name != "step"] if rows else []
            columns = {name: [_number(row[name]) for row in rows] for name in names}
        except (KeyError, ValueError, TypeError) as error:
            raise _damaged(path, error, "pretrain") from None
        return Curve(steps, columns)

    def results(self) -> dict[str, Result]:
        there = {path.stem for path in (self._root / "artifacts/results").glob("*.json")}
        wanted = self._wanted()
        found = {}
        for protocol in (*PROTOCOLS, *sorted((there | wanted) - PROTOCOLS.keys())):
            if protocol not in there | wanted:
                continue
            content = self.json(f"artifacts/results/{protocol}.json", stage_of(protocol))
            if content is None:
                continue
            with reading(self._root, protocol):
                found[protocol] = Result.of(protocol, content)
        return found

    def _wanted(self) -> set[str]:
        """Return the protocols that params.yaml asks for; without one, nothing is known of it."""
        path = self._root / "params.yaml"
        asked = read_params(path).evaluate.protocols if path.is_file() else ()
        return {"detection", *asked}

    def _found(self, name: str, stage: str) -> Path | None:
        path = self._root / name
        if path.is_file():
            return path
        self.missing.append(f"{name}: run `dvc repro {stage}`")
        return None


@contextmanager
def reading(root: Path, protocol: str) -> Iterator[None]:
    """Within, a result that is not laid out as it should be is a DataError that names its file."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        path = root / f"artifacts/results/{protocol}.json"
        raise _damaged(path, error, stage_of(protocol)) from error


def _damaged(path: Path, error: Exception, stage: str) -> DataError:
    what = f"{type(error).__name__}: {error}"
    return DataError(f"{path} is damaged ({what}): run `dvc repro --force --single-item {stage}`")


def _number(text: str) -> float | None:
    return float(text) if text else None


def require_something(findings: Findings) -> None:
    """Raise MaestroError when no stage has left anything to report on."""
    if not (findings.datasets or findings.encoder or findings.results):
        raise MaestroError(
            f"there is nothing to report on in {findings.root.resolve()}: run `dvc repro` first"
        )
