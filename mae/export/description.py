"""What an exported model says of itself: written into the ONNX file, read by whoever runs it."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from numpy.typing import NDArray

from mae import __version__
from mae.model.artifact import EncoderArtifact
from mae.model.convolutional import KIND, ConvolutionalArchitecture
from mae.model.encoder import Architecture
from mae.params import OnnxPrecision
from mae.pixels import PixelStatistics

FORMAT = 2
INPUT = "images"
OUTPUTS = ("cls", "mean", "patches")
CLASSIFIER_OUTPUTS = ("logits", "probabilities")
LICENCE = (
    "The code that made this file is Apache-2.0. Whether the weights may be shared depends on "
    "the licence of the images they were trained on."
)

_PREFIX = "maestro."

Kind = Literal["encoder", "classifier"]
Resolution = Literal["fixed", "dynamic", "resized"]


@dataclass(frozen=True)
class EncoderDescription:
    """Everything needed to feed an exported encoder or classifier, and where it comes from.

    resize: an image is resized to cover resize x (height, width), then centre-cropped. resolution:
    which images it takes, as in ExportParams. classes: names of a classifier's classes, in order.
    metrics: what was measured of it before: protocol -> name -> number. training: what
    encoder.json says of it, `params` among it.
    """

    architecture: Architecture
    statistics: PixelStatistics
    resize: float
    training: dict[str, Any]
    resolution: Resolution = "fixed"
    precision: OnnxPrecision = "fp32"
    kind: Kind = "encoder"
    classes: tuple[str, ...] = ()
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    version: str = __version__

    @classmethod
    def of(cls, artifact: EncoderArtifact, **others: Any) -> "EncoderDescription":
        return cls(
            architecture=artifact.encoder.architecture,
            statistics=artifact.statistics,
            resize=artifact.resize,
            training=artifact.info["training"],
            **others,
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        return OUTPUTS if self.kind == "encoder" else CLASSIFIER_OUTPUTS

    @property
    def dtype(self) -> str:
        """The integer type of the input: uint8 or uint16."""
        return f"uint{self.statistics.bit_depth}"

    @property
    def shape(self) -> str:
        """The shape of the input in words, as in "(N, 3, 224, 224)"."""
        a = self.architecture
        sides = {
            "fixed": f"{a.height}, {a.width}",
            "dynamic": f"H, W, multiples of {a.patch[0]} and {a.patch[1]}",
            "resized": "H, W",
        }
        return f"(N, {a.channels}, {sides[self.resolution]})"

    @property
    def preprocessing(self) -> str:
        """What the caller must do to an image before it goes in, and what the graph does itself."""
        a = self.architecture
        cover = f"{round(a.height * self.resize)} x {round(a.width * self.resize)}"
        channels = f"{a.channels} channel{'' if a.channels == 1 else 's'}"
        prepared = (
            f"Turn the image upright, convert it to {channels} of {self.statistics.bit_depth} bits"
        )
        resized = (
            f"resize it (bicubic, antialiased, aspect kept) until it covers {cover} pixels (height "
            f"x width), cut out the central {a.height} x {a.width}"
        )
        passed = f"pass it as {self.dtype} (N, C, H, W)"
        normalised = (
            "Scaling to 0..1 and normalisation by the mean and standard deviation of the training "
            "data happen inside the graph."
        )
        if self.resolution == "resized":
            return (
                f"{prepared} and {passed} of any height and width, the same for all N. Inside, "
                f"the graph does the rest: {resized}. {normalised}"
            )
        text = f"{prepared}, {resized}, and {passed}. {normalised}"
        if self.resolution == "dynamic":
            text += f" Any height and width in multiples of {a.patch[0]} and {a.patch[1]} will do."
        return text

    def check(self, images: NDArray, name: str) -> None:
        """Raise ValueError for images that `name`, a file of this description, does not take."""
        a = self.architecture
        fits = images.ndim == 4 and str(images.dtype) == self.dtype
        if fits:
            channels, height, width = images.shape[1:]
            sides = {
                "fixed": (height, width) == (a.height, a.width),
                "dynamic": height and width and not (height % a.patch[0] or width % a.patch[1]),
                "resized": height and width,
            }
            fits = channels == a.channels and bool(sides[self.resolution])
        if not fits:
            raise ValueError(
                f"{name} takes {self.dtype} images {self.shape} and was given {images.dtype} "
                f"{images.shape}"
            )

    def to_metadata(self) -> dict[str, str]:
        """Return the key-value pairs of an ONNX file; structured values are canonical JSON."""
        training = {name: value for name, value in self.training.items() if name != "params"}
        structured = {
            "architecture": self.architecture.to_dict(),
            "statistics": self.statistics.to_dict(),
            "training": training,
            "params": self.training.get("params", {}),
            "metrics": self.metrics,
            "classes": list(self.classes),
        }
        plain = {
            "format": str(FORMAT),
            "version": self.version,
            "commit": str(self.training.get("commit") or "unknown"),
            "data_fingerprint": str(self.training.get("data_fingerprint") or "unknown"),
            "resize": repr(self.resize),
            "resolution": self.resolution,
            "precision": self.precision,
            "kind": self.kind,
            "preprocessing": self.preprocessing,
            "licence": LICENCE,
        }
        plain |= {name: json.dumps(value, sort_keys=True) for name, value in structured.items()}
        return {_PREFIX + name: plain[name] for name in sorted(plain)}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> "EncoderDescription":
        """Inverse of to_metadata. Raises KeyError or ValueError for a foreign or newer file."""
        own = {key.removeprefix(_PREFIX): text for key, text in metadata.items()}
        written = metadata[_PREFIX + "format"]
        if written != str(FORMAT):
            raise ValueError(f"its format is {written} and this version reads {FORMAT}")
        params = json.loads(own["params"])
        return cls(
            architecture=_architecture(json.loads(own["architecture"])),
            statistics=PixelStatistics.from_dict(json.loads(own["statistics"])),
            resize=float(own["resize"]),
            training=json.loads(own["training"]) | ({"params": params} if params else {}),
            resolution=_one_of(Resolution, own["resolution"]),
            precision=_one_of(OnnxPrecision, own["precision"]),
            kind=_one_of(Kind, own["kind"]),
            classes=tuple(json.loads(own["classes"])),
            metrics=json.loads(own["metrics"]),
            version=own["version"],
        )


def _architecture(content: dict[str, Any]) -> Any:
    """Return the Architecture, or ConvolutionalArchitecture, that its to_dict described."""
    kind = ConvolutionalArchitecture if content.get("kind") == KIND else Architecture
    return kind.from_dict(content)


def _one_of(choices: Any, written: str) -> Any:
    """Return `written`, which must be one of a Literal's values. Raises ValueError."""
    if written not in get_args(choices):
        raise ValueError(f"its metadata say '{written}', which this version does not know")
    return written
