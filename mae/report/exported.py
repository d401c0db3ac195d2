"""The exported files as a reader needs them: how large, how faithful, and what was refused."""

from dataclasses import dataclass
from typing import Any

ENCODER = "encoder.onnx"


@dataclass(frozen=True)
class Parity:
    """How far one output of a file is from torch's with one provider, and on which image."""

    provider: str
    output: str
    max_abs: float
    max_abs_key: str
    min_cosine: float
    min_cosine_key: str


@dataclass(frozen=True)
class ExportedFile:
    """neighbours, decisions: share of images whose nearest neighbour, and whose class, are those
    that torch gives; None where that was not measured. limits: what it had to keep."""

    name: str
    precision: str
    kind: str
    mb: float
    parity: list[Parity]
    neighbours: float | None
    decisions: float | None
    limits: dict[str, float | None]

    @property
    def max_abs(self) -> float:
        return max(one.max_abs for one in self.parity)

    @property
    def min_cosine(self) -> float:
        return min(one.min_cosine for one in self.parity)

    @property
    def providers(self) -> list[str]:
        names = dict.fromkeys(one.provider for one in self.parity)
        return [name.removesuffix("ExecutionProvider") for name in names]


@dataclass(frozen=True)
class Exported:
    """export.json. images: held out, that every file was compared on, in batches of `batches`.
    refused: why a precision is not there. remarks: what else is to be known."""

    files: list[ExportedFile]
    refused: dict[str, str]
    images: int
    batches: list[int]
    resolution: str
    remarks: list[str]

    @property
    def encoder(self) -> ExportedFile:
        """The encoder in float32, which is always there."""
        return next(file for file in self.files if file.name == ENCODER)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Exported":
        """Raises KeyError, TypeError or ValueError for what the export stage does not write."""
        limits = content["limits"]
        exported = cls(
            files=[_file(name, one, limits) for name, one in content["files"].items()],
            refused=dict(content["refused"]),
            images=content["parity_images"],
            batches=list(content["batches"]),
            resolution=content["resolution"],
            remarks=_remarks(content),
        )
        if not any(file.name == ENCODER for file in exported.files):
            raise ValueError(f"it does not name {ENCODER}")
        exported.files.sort(key=lambda file: (file.kind != "encoder", file.name != ENCODER))
        return exported


def _file(name: str, content: dict[str, Any], limits: dict[str, Any]) -> ExportedFile:
    parity = [
        Parity(provider, output, **{key: one[key] for key in _MEASURED})
        for provider, outputs in content["parity"].items()
        for output, one in outputs.items()
    ]
    if not parity:
        raise ValueError(f"{name} was compared on nothing")
    return ExportedFile(
        name=name,
        precision=content["precision"],
        kind=content["kind"],
        mb=content["mb"],
        parity=parity,
        neighbours=content["neighbours"],
        decisions=content["decisions"],
        limits=limits[content["precision"]],
    )


_MEASURED = ("max_abs", "max_abs_key", "min_cosine", "min_cosine_key")


def _remarks(content: dict[str, Any]) -> list[str]:
    skipped = [one.get("decisions_skipped") for one in content["files"].values()]
    skipped.append((content.get("classifier") or {}).get("skipped"))
    return list(dict.fromkeys(sentence for sentence in skipped if sentence))
