"""From artifacts/pretrain to artifacts/export: write, compare with torch, and only then keep."""

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mae.errors import DataError, MaestroError
from mae.evaluation.features import check_pixels_fit
from mae.evaluation.logistic import LinearModel
from mae.export.agreement import fit_probe
from mae.export.classifier import LearnedClassifier, learn_classifier
from mae.export.description import EncoderDescription
from mae.export.graph_files import external_data_files
from mae.export.held_out import (
    calibration_images,
    held_out_images,
    levels_apart,
)
from mae.export.models import CLASSIFIER_FILE, ENCODER_FILE
from mae.export.onnx_export import PixelClassifier, PixelEncoder, PixelModel, write_onnx
from mae.export.parity import (
    Answers,
    Parity,
    ParityError,
    batches_of,
    enforce_parity,
    measure_parity,
    parity_numbers,
    torch_answers,
)
from mae.export.runtime import Settings, open_runtime
from mae.export.variants import write_half, write_int8, write_int8_static
from mae.files import read_json, replacing_folder, sha256_of_file, write_json
from mae.model.artifact import EncoderArtifact, load_encoder
from mae.params import OnnxPrecision, Params
from mae.training.devices import resolve_device

LOG = logging.getLogger(__name__)

FILES: dict[OnnxPrecision, str] = {
    "fp32": ENCODER_FILE,
    "fp16": "encoder.fp16.onnx",
    "int8": "encoder.int8.onnx",
    "int8_static": "encoder.int8_static.onnx",
}
ABOUT = "export.json"
FORMAT = 1

# By how much, in levels of 8 bits and on average, resizing inside the graph may differ from that
# of evaluation, which rounds large images after every pass.
_LEVELS = 0.5


def export_encoder(
    pretrained: Path,
    shards: Path,
    folder: Path,
    params: Params,
    results: Path | None = None,
) -> dict[str, float]:
    """Write the ONNX files that params.export asks for to `folder`, and return flat numbers.

    results: a folder of what was measured of the encoder, to go into the files. The folder
    appears only once every file agrees with torch on held-out images, on the CPU and on a GPU
    where the run has one; until then it is as it was. Raises MaestroError otherwise.
    """
    _demand_room(folder)
    artifact = load_encoder(pretrained)
    about = _describe(artifact, params, results)
    export = Export(artifact, about, shards, params)
    learned = None
    if params.export.classifier is not None:
        learned = learn_classifier(pretrained, shards, params)
    with replacing_folder(folder) as temporary:
        export.encoders(temporary)
        if isinstance(learned, LearnedClassifier):
            export.classifier(temporary, learned)
        write_json(temporary / ABOUT, export.to_dict(learned))
    for precision, reason in export.refused.items():
        LOG.warning("left out %s: %s", FILES[precision], reason)
    return export.numbers


def _demand_room(folder: Path) -> None:
    """Raise MaestroError before the work begins where its result could not be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent):
            pass
    except OSError as error:
        raise MaestroError(
            f"{folder} cannot be written ({error.strerror}): choose another folder, or let this "
            "user write there"
        ) from None
    if folder.exists() and not folder.is_dir():
        raise MaestroError(f"{folder} is a file: the exported models go into a folder of their own")


def _describe(
    artifact: EncoderArtifact, params: Params, results: Path | None
) -> EncoderDescription:
    about = EncoderDescription.of(
        artifact,
        resolution=params.export.resolution,
        metrics=_measured(artifact, results) if results is not None else {},
    )
    made_by = about.training.get("params", {}) | {"export": params.export.model_dump(mode="json")}
    return replace(about, training=about.training | {"params": made_by})


def _measured(artifact: EncoderArtifact, results: Path) -> dict[str, dict[str, float]]:
    """Return the numbers of each protocol that measured this very encoder."""
    metrics = {}
    for path in sorted(results.glob("*.json")):
        result = read_json(path)
        if result.get("encoder", {}).get("training") != artifact.info["training"]:
            LOG.warning("%s is of another encoder: its numbers stay out of the files", path)
        elif not result.get("skipped"):
            metrics[path.stem] = result["numbers"]
    return metrics


@dataclass(frozen=True)
class _Exported:
    """A file that passed the gate."""

    precision: OnnxPrecision
    kind: str
    parities: dict[str, Parity]  # by provider


class Export:
    """Files written one by one, each through the gate, and what was found of them."""

    def __init__(
        self, artifact: EncoderArtifact, about: EncoderDescription, shards: Path, params: Params
    ) -> None:
        self.about, self.shards, self.params = about, shards, params
        self.refused: dict[OnnxPrecision, str] = {}
        self.resize = about.resize if about.resolution == "resized" else None
        self.encoder = PixelEncoder(artifact.encoder, artifact.statistics, self.resize)
        runtime = params.runtime
        self.forms = held_out_images(shards, about, params.export.parity.images, runtime)
        check_pixels_fit(artifact, about.statistics, "the images of the data")
        self.resizing = self._compare_resizing()
        self.probe = fit_probe(artifact, shards, params.export.feature, runtime)
        self._devices = sorted({"cpu", resolve_device(runtime.device).type})
        self._files: dict[str, _Exported] = {}
        self._about_files: dict[str, dict[str, Any]] = {}

    # --- writing ------------------------------------------------------------------------------

    def encoders(self, folder: Path) -> None:
        """Write a file for each precision. Raises ParityError for one that must not be left out."""
        expected = [torch_answers(self.encoder, images) for images in self.forms]
        for precision in sorted(self.params.export.precisions, key=list(FILES).index):
            path = folder / FILES[precision]
            self._writers()[precision](path)
            try:
                self._admit(path, precision, "encoder", expected)
            except ParityError as error:
                if precision == "fp32" or self.params.export.on_refusal == "fail":
                    raise ParityError(f"{error}; {self._advice(precision)}") from None
                self.refused[precision] = str(error)
                for file in (path, *external_data_files(path)):
                    file.unlink()

    def classifier(self, folder: Path, learned: LearnedClassifier) -> None:
        """Write the classifier in float32."""
        about = replace(
            self.about,
            kind="classifier",
            classes=learned.classes,
            metrics=self.about.metrics | {"classifier": {"accuracy": learned.accuracy}},
        )
        model = PixelClassifier(learned.classifier, about.statistics, self.resize)
        self._write_fp32(folder / CLASSIFIER_FILE, model, about)
        expected = [torch_answers(model, images) for images in self.forms]
        self._admit(folder / CLASSIFIER_FILE, "fp32", "classifier", expected)

    def _writers(self) -> dict[OnnxPrecision, Callable[[Path], None]]:
        keep = self.params.export.keep_float
        return {
            "fp32": lambda path: self._write_fp32(path, self.encoder, self.about),
            "fp16": lambda path: write_half(_beside(path), path, self.about),
            "int8": lambda path: write_int8(_beside(path), path, self.about, keep),
            "int8_static": self._write_static,
        }

    def _write_fp32(self, path: Path, model: PixelModel, about: EncoderDescription) -> None:
        export = self.params.export
        write_onnx(path, model, about, export.opset, optimize=export.optimize)

    def _write_static(self, path: Path) -> None:
        export = self.params.export
        images = calibration_images(
            self.shards, self.about, export.calibration_images, self.params.runtime
        )
        with tempfile.TemporaryDirectory(prefix="maestro-plain-") as folder:
            plain = Path(folder) / "plain.onnx"
            write_onnx(plain, self.encoder, self.about, export.opset)
            write_int8_static(plain, path, self.about, export.keep_float, list(images.batches(8)))

    # --- the gate -----------------------------------------------------------------------------

    def _admit(
        self, path: Path, precision: OnnxPrecision, kind: str, expected: Sequence[Answers]
    ) -> None:
        limits = self.params.export.parity.of(precision)
        parities = {}
        for device in self._devices:
            session = open_runtime(path, Settings(device))
            provider = session.get_providers()[0]
            probe = self.probe if isinstance(self.probe, LinearModel) else None
            feature = self.params.export.feature
            parity = measure_parity(expected, session, self.forms, feature, probe)
            enforce_parity(parity, limits, precision, provider, kind)
            parities[provider] = parity
        self._files[path.name] = _Exported(precision, kind, parities)
        data = external_data_files(path)
        self._about_files[path.name] = {
            "precision": precision,
            "kind": kind,
            "mb": round(sum(file.stat().st_size for file in (path, *data)) / 1e6, 3),
            "sha256": sha256_of_file(path),
            "data": [file.name for file in data],
            "parity": {provider: one.to_dict() for provider, one in parities.items()},
            **_shares(list(parities.values())),
        }

    def _compare_resizing(self) -> dict[str, float] | None:
        if self.resize is None:
            return None
        largest, mean = levels_apart(self.forms[0], self.about)
        if mean > _LEVELS:
            raise DataError(
                f"resizing inside the graph differs from that of evaluation by {mean:.2f} levels "
                f"of 8 bits on average (limit {_LEVELS}): use export.resolution fixed"
            )
        return {"max_levels": round(largest, 4), "mean_levels": round(mean, 6)}

    def _advice(self, precision: OnnxPrecision) -> str:
        if precision == "fp32":
            return "nothing was exported"
        return (
            f"nothing was exported. Take {precision} out of export.precisions, set "
            "export.on_refusal to leave_out"
            + (", or keep parts in float32 (export.keep_float)" if "int8" in precision else "")
        )

    # --- what is told -------------------------------------------------------------------------

    @property
    def numbers(self) -> dict[str, float]:
        """Return flat numbers: of the float32 encoder plain, of others with a suffix."""
        numbers = {"parity_images": float(len(self.forms[0]))}
        for name, one in self._files.items():
            word = "classifier" if one.kind == "classifier" else one.precision
            suffix = "" if word == "fp32" else f"_{word}"
            found = parity_numbers(list(one.parities.values()))
            found["file_mb"] = self._about_files[name]["mb"]
            numbers |= {f"{key}{suffix}": value for key, value in found.items()}
        return numbers

    def to_dict(self, learned: LearnedClassifier | str | None) -> dict[str, Any]:
        export = self.params.export
        first = self.forms[0]
        told: dict[str, Any] = {
            "format": FORMAT,
            "files": self._about_files,
            "refused": self.refused,
            "parity_images": len(first),
            "split": first.split,
            "batches": batches_of(first),
            "resolution": self.about.resolution,
            "other_sizes": [list(form.images[0].shape[1:]) for form in self.forms[1:]],
            "resizing": self.resizing,
            "decisions_skipped": self.probe if isinstance(self.probe, str) else None,
            "limits": {precision: export.parity.of(precision).model_dump() for precision in FILES},
            "classifier": None,
        }
        if isinstance(learned, str):
            told["classifier"] = {"skipped": learned}
        elif learned is not None:
            told["classifier"] = {
                **learned.how,
                "accuracy": learned.accuracy,
                "classes": list(learned.classes),
            }
        return told


def _shares(parities: list[Parity]) -> dict[str, float | None]:
    numbers = parity_numbers(parities)
    return {name: numbers.get(name) for name in ("neighbours", "decisions")}


def _beside(path: Path) -> Path:
    """Return the float32 encoder that another precision beside it is made of."""
    return path.with_name(FILES["fp32"])
