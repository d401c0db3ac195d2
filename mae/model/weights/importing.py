"""Weights of others -> a folder like artifacts/pretrain, with which everything here works."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from mae.errors import CheckpointError, ParamsError
from mae.files import fingerprint
from mae.model.artifact import Head, put_weights, save_artifact, save_encoder_artifact
from mae.model.autoencoder import Autoencoder
from mae.model.encoder import Architecture, Encoder
from mae.model.weights.beside import notes_beside, said_beside
from mae.model.weights.converting import Converted, spelled, to_ours, without_decoder
from mae.model.weights.naming import NAMINGS, Family, recognise
from mae.model.weights.placing import check_replaceable
from mae.model.weights.reading import ForeignWeights, read_weights
from mae.model.weights.shapes import NOTHING_SAID, DecoderShape, Said, Shape, shape_of
from mae.params import DecoderParams, MaskParams, ModelParams, TargetParams
from mae.pixels import PixelStatistics

Source = Literal["auto", "reference", "timm", "huggingface"]

# Of ImageNet's training images: what the published weights were trained with, where nothing
# beside them says otherwise.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_RESIZE = 256 / 224  # evaluation of the published models: shorter side 256, centre crop 224
_MASK_RATIO = 0.75
_CLASSES = "fine-tuned weights hold a classifying layer and no decoder"


@dataclass(frozen=True)
class Identified:
    """Foreign weights, whose they are, and what network and preprocessing they are of."""

    weights: ForeignWeights
    family: Family
    shape: Shape
    said: Said
    converted: Converted

    @property
    def where(self) -> str:
        return str(self.weights.path)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.converted.notes


def identify(
    source: Path, said: Said, expected: Source = "auto", *, encoder_only: bool = False
) -> Identified:
    """Read weights and find out everything about them. Raises CheckpointError.

    said: by whoever asks; it overrules what lies beside the weights.
    """
    weights = read_weights(source)
    where = str(source)
    family = recognise(weights.tensors, where)
    if expected != "auto" and (expected == "huggingface") != (family == "huggingface"):
        raise CheckpointError(f"{where} names its weights as {family} does, not {expected}")
    naming = NAMINGS[family]
    tensors = spelled(weights.tensors, family, where)
    if encoder_only:
        tensors = without_decoder(tensors, family)
    elif expected == "timm" and len(tensors) != len(without_decoder(tensors, family)):
        raise CheckpointError(f"{where} holds a decoder, which timm's models have not")
    said = said.over(said_beside(weights, family))
    shape = shape_of(tensors, naming, said, where)
    if shape.classes is not None and shape.decoder is not None:
        raise CheckpointError(f"{where} holds a decoder and a classifying layer: {_CLASSES}")
    remarks = notes_beside(weights, naming)
    converted = to_ours(tensors, family, shape, where)
    converted = Converted(
        converted.encoder, converted.decoder, converted.head, (*converted.notes, *remarks)
    )
    return Identified(weights, family, shape, said, converted)


def import_weights(
    source: Path,
    out: Path,
    said: Said = NOTHING_SAID,
    expected: Source = "auto",
    *,
    encoder_only: bool = False,
) -> Identified:
    """Write foreign weights as the folder `out`, whole or not at all.

    Raises CheckpointError for weights that do not fit, ParamsError for what only the user can say.
    """
    check_replaceable(out, "encoder.json")
    found = identify(source, said, expected, encoder_only=encoder_only)
    architecture = found.shape.architecture
    statistics = statistics_of(found)
    resize = found.said.resize or _RESIZE
    training = {
        "imported": {
            "from": found.weights.path.name,
            "names": found.family,
            "sha256": found.weights.sha256,
            "notes": list(found.notes),
        },
        # Neither a commit nor a dataset of ours: the files themselves are the only witness.
        "data_fingerprint": "imported " + fingerprint(found.weights.sha256)[:16],
    }
    if found.shape.decoder is None:
        encoder = Encoder(architecture)
        put_weights(encoder, found.converted.encoder, found.where)
        head = _head(found)
        save_encoder_artifact(out, encoder.eval(), statistics, training, resize=resize, head=head)
    else:
        autoencoder = _autoencoder(found, found.shape.decoder, resize)
        save_artifact(out, autoencoder.eval(), statistics, training)
    return found


def statistics_of(found: Identified) -> PixelStatistics:
    """Return the normalisation that the weights expect. Raises ParamsError when nobody says it."""
    said, channels = found.said, found.shape.architecture.channels
    if (said.mean is None) != (said.std is None):
        raise ParamsError("give both --mean and --std, or neither")
    if said.mean is None and channels != 3:
        raise ParamsError(
            f"{found.where} takes {channels} channels, and nothing says how their pixels "
            "(on a scale of 0 to 1) were normalised: give --mean and --std"
        )
    mean, std = said.mean or IMAGENET_MEAN, said.std or IMAGENET_STD
    if len(mean) != channels or len(std) != channels:
        raise ParamsError(
            f"{found.where} takes {channels} channels, and --mean has {len(mean)} numbers, "
            f"--std {len(std)}"
        )
    if min(std) <= 0:
        raise ParamsError("--std must be above 0 in every channel")
    return PixelStatistics(tuple(mean), tuple(std), said.bit_depth or 8)


def _autoencoder(found: Identified, decoder: DecoderShape, resize: float) -> Autoencoder:
    assert found.converted.decoder is not None
    if found.said.target is None:
        raise ParamsError(
            f"nothing in {found.where} says what its decoder predicts: give --target pixels or "
            "--target normalized_pixels (as --norm_pix_loss trains it), or --encoder-only"
        )
    params = _model_params(found.shape.architecture, decoder, found.said, resize)
    autoencoder = Autoencoder(params, found.shape.architecture.channels)
    state = {f"encoder.{name}": value for name, value in found.converted.encoder.items()}
    state |= {f"decoder.{name}": value for name, value in found.converted.decoder.items()}
    put_weights(autoencoder, state, found.where)
    return autoencoder


def _model_params(a: Architecture, decoder: DecoderShape, said: Said, resize: float) -> ModelParams:
    assert said.target is not None
    return ModelParams(
        height=a.height,
        width=a.width,
        resize=resize,
        patch=a.patch,
        dim=a.dim,
        depth=a.depth,
        heads=a.heads,
        mlp_ratio=a.mlp_ratio,
        positions="learned" if a.positions == "learned" else "sincos",
        decoder=DecoderParams(
            width=decoder.width,
            depth=decoder.depth,
            heads=decoder.heads,
            positions="learned" if decoder.learned_positions else "sincos",
        ),
        mask=MaskParams(kind="random", ratio=said.mask_ratio or _MASK_RATIO),
        target=TargetParams(kind=said.target),
    )


def _head(found: Identified) -> Head | None:
    state = found.converted.head
    if state is None:
        return None
    layer = nn.Linear(found.shape.architecture.dim, len(state["bias"]))
    put_weights(layer, state, found.where)
    return Head(layer, "mean" if found.shape.architecture.pooled_norm else "cls")
