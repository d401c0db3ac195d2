"""What frozen-encoder protocols compare: the pretrained encoder and its baselines."""

import hashlib
import tempfile
from pathlib import Path

import torch

from mae.errors import CheckpointError, DataError, MaestroError, ParamsError
from mae.evaluation.features import FrozenArm, check_pixels_fit
from mae.model.artifact import EncoderArtifact, load_encoder, random_encoder
from mae.model.encoder import Encoder
from mae.params import Params
from mae.pixels import PixelStatistics

_WORDS = {"scratch": "from scratch", "random": "random encoder", "pixels": "raw pixels"}


def words(name: str) -> str:
    """Return what readers call a baseline; those that the user added keep their names."""
    return _WORDS.get(name, name)


def frozen_arms(params: Params, artifact: EncoderArtifact, *, pixels: bool) -> dict[str, FrozenArm]:
    """Return the arms by name: pretrained, random (an untrained encoder of its shape), those of
    evaluate.baselines, and the raw pixels where asked for.

    Raises DataError, CheckpointError or ParamsError for a baseline that cannot be used.
    """
    encoder = artifact.encoder
    untrained = random_encoder(encoder.architecture, params.seed)
    arms = {
        "pretrained": frozen_arm("pretrained", artifact),
        "random": _arm("random", untrained, artifact),
    }
    for name, other in baselines(params, artifact.statistics).items():
        arms[name] = frozen_arm(name, other)
    if pixels:
        arms["pixels"] = _arm("pixels", None, artifact)
    return arms


def frozen_arm(name: str, artifact: EncoderArtifact) -> FrozenArm:
    """Return an encoder as what protocols compare."""
    return _arm(name, artifact.encoder, artifact)


def _arm(name: str, encoder: Encoder | None, artifact: EncoderArtifact) -> FrozenArm:
    architecture = artifact.encoder.architecture
    return FrozenArm(
        name=name,
        encoder=encoder,
        statistics=artifact.statistics,
        height=architecture.height,
        width=architecture.width,
        resize=artifact.resize,
        weights_sha="pixels" if encoder is None else _weights_sha(encoder),
    )


def _weights_sha(encoder: Encoder) -> str:
    """Return a hash of every number that decides what the encoder answers."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# --- encoders that the user names ---------------------------------------------------------------


def baselines(params: Params, statistics: PixelStatistics) -> dict[str, EncoderArtifact]:
    """Return the encoders of evaluate.baselines by name; `statistics`: of the data."""
    return {
        name: load_baseline(name, source, statistics)
        for name, source in params.evaluate.baselines.items()
    }


def load_baseline(name: str, source: str | Path, statistics: PixelStatistics) -> EncoderArtifact:
    """Read an encoder from a folder like artifacts/pretrain, or weights as they come from the MAE
    release, timm or HuggingFace. It sees the images in its own height, width and normalisation.

    Raises CheckpointError, ParamsError or DataError, which name evaluate.baselines.NAME, for
    what cannot be read and for an encoder that takes other pixels than the data's.
    """
    source = Path(source)
    try:
        artifact = load_encoder(source) if _is_ours(source) else _imported(source)
        check_pixels_fit(artifact, statistics, "the images of the data")
    except (CheckpointError, DataError, ParamsError) as error:
        raise _named(error, name) from None
    return artifact


def _is_ours(source: Path) -> bool:
    return (source / "encoder.json").is_file()


def _imported(source: Path) -> EncoderArtifact:
    from mae.model.weights.importing import import_weights

    with tempfile.TemporaryDirectory(prefix="maestro-baseline-") as place:
        folder = Path(place) / "encoder"
        import_weights(source, folder, encoder_only=True)
        return load_encoder(folder)


def _named(error: MaestroError, name: str) -> MaestroError:
    """The hints of an import are for its command line, so the way there is said as well."""
    return type(error)(
        f"evaluate.baselines.{name}: {error}. (`mae weights import` turns foreign weights into a "
        "folder that can be named here, and takes what they do not say of themselves)"
    )
