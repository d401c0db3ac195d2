"""The encoders of a run's checkpoints: what the pretrained one was on its way."""

import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mae.errors import CheckpointError
from mae.model.artifact import EncoderArtifact, put_weights, random_encoder

LOG = logging.getLogger(__name__)

_AT_MOST = 8
_PREFIX = "autoencoder.encoder."  # of the pretraining task's weights


def earlier_encoders(run: Path, last: EncoderArtifact) -> dict[int, EncoderArtifact]:
    """Return the encoders of the checkpoints in a run's folder by step, earliest first.

    Without that of the last step, which is `last` itself; of more than eight, eight spread
    evenly. What cannot be read is left out with a line in the log.
    """
    found = sorted((run / "checkpoints").glob("step-[0-9]*"))
    steps = {int(path.name.removeprefix("step-")): path for path in found}
    steps.pop(int(last.info["training"].get("steps", -1)), None)
    chosen = torch.linspace(0, len(steps) - 1, min(_AT_MOST, len(steps))).round().long().tolist()
    encoders = {}
    for step in (list(steps)[index] for index in chosen):
        try:
            encoders[step] = _encoder_in(steps[step], last)
        except (CheckpointError, OSError, SafetensorError) as error:
            LOG.warning("%s is left out of the comparison: %s", steps[step], error)
    return encoders


def _encoder_in(checkpoint: Path, last: EncoderArtifact) -> EncoderArtifact:
    """The averaged weights are what is kept of a run that averages."""
    weights: dict[str, Tensor] = load_file(checkpoint / "weights.safetensors")
    average = checkpoint / "average.safetensors"
    if average.is_file():
        weights |= load_file(average)
    encoder = random_encoder(last.encoder.architecture, seed=0)
    of_encoder = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in weights.items()
        if name.startswith(_PREFIX)
    }
    put_weights(encoder, of_encoder, str(checkpoint))
    return EncoderArtifact(encoder.eval(), last.statistics, last.info)
