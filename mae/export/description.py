"""What an exported encoder says of itself: written into the ONNX file, read by whoever runs it."""

import json
from dataclasses import dataclass
from typing import Any

from mae import __version__
from mae.model.artifact import EncoderArtifact
from mae.model.encoder import Architecture
from mae.pixels import PixelStatistics

FORMAT = 1
INPUT = "images"
OUTPUTS = ("cls", "mean", "patches")
LICENCE = (
    "The code that made this file is Apache-2.0. Whether the weights may be shared depends on "
    "the licence of the images they were trained on."
)

_PREFIX = "maestro."


@dataclass(frozen=True)
class EncoderDescription:
    """Everything needed to feed an exported encoder and to say where it comes from.

    resize: an image is resized to cover resize x (height, width), then centre-cropped.
    """

    architecture: Architecture
    statistics: PixelStatistics
    resize: float
    training: dict[str, Any]
    version: str = __version__

    @classmethod
    def of(cls, artifact: EncoderArtifact) -> "EncoderDescription":
        return cls(
            architecture=artifact.encoder.architecture,
            statistics=artifact.statistics,
            resize=artifact.resize,
            training=artifact.info["training"],
        )

    @property
    def dtype(self) -> str:
        """The integer type of the input: uint8 or uint16."""
        return f"uint{self.statistics.bit_depth}"

    @property
    def preprocessing(self) -> str:
        """What the caller must do to an image before it goes in, and what the graph does itself."""
        a = self.architecture
        cover = f"{round(a.height * self.resize)} x {round(a.width * self.resize)}"
        channels = f"{a.channels} channel{'' if a.channels == 1 else 's'}"
        return (
            f"Turn the image upright, convert it to {channels} of "
            f"{self.statistics.bit_depth} bits, resize it (bicubic, antialiased, aspect kept) "
            f"until it covers {cover} pixels (height x width), cut out the central "
            f"{a.height} x {a.width}, and pass it as {self.dtype} (N, C, H, W). "
            "Scaling to 0..1 and normalisation by the mean and standard deviation of the training "
            "data happen inside the graph."
        )

    def to_metadata(self) -> dict[str, str]:
        """Return the key-value pairs of an ONNX file; structured values are canonical JSON."""
        structured = {
            "architecture": self.architecture.to_dict(),
            "statistics": self.statistics.to_dict(),
            "training": self.training,
        }
        plain = {
            "format": str(FORMAT),
            "version": self.version,
            "commit": str(self.training.get("commit") or "unknown"),
            "data_fingerprint": str(self.training.get("data_fingerprint") or "unknown"),
            "resize": repr(self.resize),
            "preprocessing": self.preprocessing,
            "licence": LICENCE,
        }
        plain |= {name: json.dumps(value, sort_keys=True) for name, value in structured.items()}
        return {_PREFIX + name: plain[name] for name in sorted(plain)}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> "EncoderDescription":
        """Inverse of to_metadata. Raises KeyError or ValueError for a foreign or newer file."""
        written = metadata[_PREFIX + "format"]
        if written != str(FORMAT):
            raise ValueError(f"its format is {written} and this version reads {FORMAT}")
        return cls(
            architecture=Architecture.from_dict(json.loads(metadata[_PREFIX + "architecture"])),
            statistics=PixelStatistics.from_dict(json.loads(metadata[_PREFIX + "statistics"])),
            resize=float(metadata[_PREFIX + "resize"]),
            training=json.loads(metadata[_PREFIX + "training"]),
            version=metadata[_PREFIX + "version"],
        )
