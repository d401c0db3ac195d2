"""Weights to begin with: another run's, which is something else than to go on with a run."""

import logging
from pathlib import Path

from mae.errors import CheckpointError
from mae.files import sha256_of_file
from mae.model.artifact import load_weights, read_info
from mae.model.methods import PretrainingModel
from mae.pixels import PixelStatistics

LOG = logging.getLogger(__name__)

_WHOLE, _ENCODER = "autoencoder.safetensors", "encoder.safetensors"


def weights_in(folder: str | None) -> Path | None:
    """Return the file of weights in a folder such as artifacts/pretrain, or None for no folder.

    Raises CheckpointError where there is none.
    """
    if folder is None:
        return None
    for name in (_WHOLE, _ENCODER):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise CheckpointError(
        f"pretrain.start_from: {folder} holds no {_WHOLE} or {_ENCODER}. Name a copy of "
        "artifacts/pretrain (DVC empties the folder itself before the stage runs), or what `mae "
        "weights import` wrote"
    )


def identity_of(weights: Path | None) -> str | None:
    """Return what stands for the weights in a run's identity: their content, not their place."""
    return None if weights is None else sha256_of_file(weights)


def begin_with(model: PretrainingModel, weights: Path, statistics: PixelStatistics) -> None:
    """Load the weights into an untrained model; of an encoder alone, into its encoder.

    Raises CheckpointError for weights of another architecture. Weights that saw images of other
    brightness and contrast are taken all the same, with a warning.
    """
    whole = weights.name == _WHOLE
    load_weights(weights, model if whole else model.encoder)
    LOG.info("pretrain: starts from %s%s", weights, "" if whole else ", with a new decoder")
    theirs = PixelStatistics.from_dict(read_info(weights.parent)["statistics"])
    if theirs != statistics:
        LOG.warning(
            "pretrain: the weights of %s were learned from images normalised with %s, and these "
            "are normalised with %s",
            weights.parent,
            theirs,
            statistics,
        )
