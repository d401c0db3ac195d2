"""The pretrained model on disk: safetensors and one JSON file, never a pickle.

artifacts/pretrain/ holds autoencoder.safetensors (to go on pretraining, to reconstruct),
encoder.safetensors (to use) and encoder.json (architecture, pixel statistics, provenance).
Imported weights may come without a decoder, and so without the first; of fine-tuned ones
head.safetensors keeps the layer that tells classes apart.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mae.errors import CheckpointError
from mae.files import read_json, replacing_folder, write_json
from mae.hashing import stream
from mae.model.convolutional import ConvolutionalEncoder
from mae.model.encoder import Architecture, Encoder
from mae.model.methods import PretrainingModel, encoder_from_dict, model_from_dict
from mae.params import Feature
from mae.pixels import PixelStatistics

FORMAT = 2


@dataclass(frozen=True)
class EncoderArtifact:
    """encoder: an Encoder, or a ConvolutionalEncoder, which offers the same."""

    encoder: Encoder
    statistics: PixelStatistics
    info: dict[str, Any]

    @property
    def resize(self) -> float:
        info = self.info.get("autoencoder", self.info)
        return float(info["resize"])


@dataclass(frozen=True)
class Head:
    """A layer from one feature to logits, as imported; fine-tuning makes its own."""

    layer: nn.Linear
    feature: Feature


@dataclass(frozen=True)
class AutoencoderArtifact:
    autoencoder: PretrainingModel
    statistics: PixelStatistics
    info: dict[str, Any]


def save_artifact(
    folder: Path,
    autoencoder: PretrainingModel,
    statistics: PixelStatistics,
    training: dict[str, Any],
) -> None:
    """Write the three files as one folder that is whole or not there."""
    with replacing_folder(folder) as temporary:
        save_weights(temporary / "autoencoder.safetensors", autoencoder)
        save_weights(temporary / "encoder.safetensors", autoencoder.encoder)
        info = _info(autoencoder.encoder, statistics, training)
        write_json(temporary / "encoder.json", info | {"autoencoder": autoencoder.to_dict()})


def save_encoder_artifact(
    folder: Path,
    encoder: Encoder,
    statistics: PixelStatistics,
    training: dict[str, Any],
    *,
    resize: float,
    head: Head | None = None,
) -> None:
    """Write an encoder without a decoder as one folder that is whole or not there."""
    with replacing_folder(folder) as temporary:
        save_weights(temporary / "encoder.safetensors", encoder)
        info = _info(encoder, statistics, training) | {"resize": resize}
        if head is not None:
            save_weights(temporary / "head.safetensors", head.layer)
            info["head"] = {"classes": head.layer.out_features, "feature": head.feature}
        write_json(temporary / "encoder.json", info)


def _info(
    encoder: Encoder | ConvolutionalEncoder, statistics: PixelStatistics, training: dict[str, Any]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "architecture": encoder.architecture.to_dict(),
        "statistics": statistics.to_dict(),
        "training": training,
    }


def load_encoder(folder: Path) -> EncoderArtifact:
    """Return the encoder of artifacts/pretrain in eval mode. Raises CheckpointError."""
    info = read_info(folder)
    encoder = cast(Encoder, encoder_from_dict(info["architecture"]))
    load_weights(Path(folder) / "encoder.safetensors", encoder)
    return EncoderArtifact(encoder.eval(), PixelStatistics.from_dict(info["statistics"]), info)


def load_autoencoder(folder: Path) -> AutoencoderArtifact:
    """Return the whole autoencoder of artifacts/pretrain in eval mode. Raises CheckpointError."""
    info = read_info(folder)
    if "autoencoder" not in info:
        raise CheckpointError(
            f"{folder} holds an encoder alone: the weights it was imported from have no decoder"
        )
    autoencoder = model_from_dict(info["autoencoder"])
    load_weights(Path(folder) / "autoencoder.safetensors", autoencoder)
    statistics = PixelStatistics.from_dict(info["statistics"])
    return AutoencoderArtifact(autoencoder.eval(), statistics, info)


def load_head(folder: Path) -> Head | None:
    """Return the classifying layer that came with imported weights, or None."""
    info = read_info(folder)
    if "head" not in info:
        return None
    layer = nn.Linear(info["architecture"]["dim"], info["head"]["classes"])
    load_weights(Path(folder) / "head.safetensors", layer)
    return Head(layer.eval(), info["head"]["feature"])


def random_encoder(architecture: Architecture, seed: int) -> Encoder:
    """Return an encoder as it is before any training: the baseline. A function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "random encoder") >> 1)
        return cast(Encoder, encoder_from_dict(architecture.to_dict())).eval()


def read_info(folder: Path) -> dict[str, Any]:
    path = Path(folder) / "encoder.json"
    try:
        info = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: run the pretrain stage first") from None
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): run the pretrain stage again"
        ) from None
    if info.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {info.get('format')} and this version reads {FORMAT}: "
            "pretrain again, or use the version of Maestro that wrote it"
        )
    return info


def save_weights(path: Path, module: nn.Module) -> None:
    weights = {name: tensor.contiguous().cpu() for name, tensor in module.state_dict().items()}
    save_file(weights, path)
    path.chmod(0o644)  # safetensors makes it private; what the pipeline hands on is not


def load_weights(path: Path, module: nn.Module) -> None:
    """Load every weight of `module`; an unmatched or ill-shaped key is an error."""
    try:
        weights: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    put_weights(module, weights, str(path))


def put_weights(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Give `module` all of its weights; an unmatched or ill-shaped key is a CheckpointError."""
    expected = module.state_dict()
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected)
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & weights.keys())
        if weights[name].shape != expected[name].shape
    ]
    if missing or unknown or shapes:
        faults = [*(f"missing {n}" for n in missing), *(f"unknown {n}" for n in unknown), *shapes]
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(f"{where} does not fit the model: {'; '.join(faults[:3])}{more}")
    module.load_state_dict(weights)
