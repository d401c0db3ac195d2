"""Everything a report tells, read from what the stages left; what is not there is named."""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae.data.dataset import DatasetInfo, read_dataset_info
from mae.errors import DataError, MaestroError
from mae.files import read_json
from mae.model.artifact import read_info

DATASETS = ("images", "scenes")
PROTOCOLS = {
    "finetune": "Fine-tuning",
    "linear_probe": "Linear probe",
    "detection": "Detection",
    "knn": "k-NN",
}


@dataclass(frozen=True)
class Result:
    """artifacts/results/<protocol>.json."""

    protocol: str
    numbers: dict[str, float]
    detail: dict[str, Any]
    skipped: str | None
    context: dict[str, Any]

    @property
    def title(self) -> str:
        return PROTOCOLS.get(self.protocol, self.protocol.replace("_", " ").capitalize())


@dataclass(frozen=True)
class LossCurve:
    """The pretraining loss by step."""

    steps: list[int]
    losses: list[float]


@dataclass(frozen=True)
class Findings:
    """None, or an absent key, where a stage has not run; `missing` says which and how to get it."""

    root: Path
    datasets: dict[str, DatasetInfo] = field(default_factory=dict)
    verdict: dict[str, Any] | None = None
    encoder: dict[str, Any] | None = None
    curve: LossCurve | None = None
    results: dict[str, Result] = field(default_factory=dict)
    export: dict[str, float] | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def reconstruction(self) -> Path | None:
        return _present(self.root / "artifacts/plots/pretrain/reconstruction.png")

    @property
    def detections(self) -> Path | None:
        return _present(self.root / "artifacts/plots/detection/predictions.png")

    @property
    def scenes_skipped(self) -> str | None:
        scenes = self.datasets.get("scenes")
        return scenes.skipped if scenes else None


def read_findings(root: Path) -> Findings:
    """Read what the stages left below `root`. Raises DataError for a file that is damaged."""
    reader = _Reader(root)
    return Findings(
        root=root,
        datasets=reader.datasets(),
        verdict=reader.json("data/validation/verdict.json", "validate"),
        encoder=reader.encoder(),
        curve=reader.curve(),
        results=reader.results(),
        export=reader.json("artifacts/metrics/export.json", "export"),
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

    def datasets(self) -> dict[str, DatasetInfo]:
        return {
            name: read_dataset_info(self._root / "data/shards" / name)
            for name in DATASETS
            if self._found(f"data/shards/{name}/dataset.json", f"shard@{name}")
        }

    def encoder(self) -> dict[str, Any] | None:
        found = self._found("artifacts/pretrain/encoder.json", "pretrain")
        return read_info(found.parent) if found else None

    def curve(self) -> LossCurve | None:
        path = self._found("artifacts/plots/pretrain/loss.csv", "pretrain")
        if path is None:
            return None
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
        except (KeyError, ValueError, TypeError) as error:
            raise _damaged(path, error, "pretrain") from None
        return LossCurve([step for step, _ in rows], [loss for _, loss in rows])

    def results(self) -> dict[str, Result]:
        there = {path.stem for path in (self._root / "artifacts/results").glob("*.json")}
        found = {}
        for protocol in (*PROTOCOLS, *sorted(there - PROTOCOLS.keys())):
            stage = "detect" if protocol == "detection" else f"evaluate@{protocol}"
            content = self.json(f"artifacts/results/{protocol}.json", stage)
            if content is not None:
                found[protocol] = Result(
                    protocol=protocol,
                    numbers=content.get("numbers") or {},
                    detail=content.get("detail") or {},
                    skipped=content.get("skipped"),
                    context=content.get("context") or {},
                )
        return found

    def _found(self, name: str, stage: str) -> Path | None:
        path = self._root / name
        if path.is_file():
            return path
        self.missing.append(f"{name}: run `dvc repro {stage}`")
        return None


def _damaged(path: Path, error: Exception, stage: str) -> DataError:
    return DataError(f"{path} is damaged ({error}): run `dvc repro --force --single-item {stage}`")


def _present(path: Path) -> Path | None:
    return path if path.is_file() else None


def require_something(findings: Findings) -> None:
    """Raise MaestroError when no stage has left anything to report on."""
    if not (findings.datasets or findings.encoder or findings.results):
        raise MaestroError(
            f"there is nothing to report on in {findings.root.resolve()}: run `dvc repro` first"
        )
