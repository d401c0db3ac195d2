"""Targets that are fitted to the data: once for a run, before its first step, and kept with it."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mae.data.loading.evaluation import evaluation_batches, evenly_spread
from mae.data.reader import ShardReader
from mae.errors import CheckpointError
from mae.files import replacing_file
from mae.model.fitting import fit_target
from mae.model.patches import holding_data, pad_to_patches, patchify, valid_patches
from mae.params import Params
from mae.pixels import PixelNormalizer
from mae.training.devices import Place

LOG = logging.getLogger(__name__)

_FITTED_KINDS = ("pca", "tokens")
_IMAGES = 4096  # that a target is fitted to, at most; each has tens to hundreds of patches


def fitted_target(
    params: Params, reader: ShardReader, folder: Path, place: Place
) -> dict[str, Tensor] | None:
    """Return what the target needs to know of the data, or None for one that needs nothing.

    The first process fits it to images spread evenly over the training set and writes
    `target.safetensors` into the run's folder; all read it from there. Raises DataError or
    ParamsError when there is too little to fit to, CheckpointError for a damaged file.
    """
    if params.model.target.kind not in _FITTED_KINDS:
        return None
    path = folder / "target.safetensors"
    if place.leads and not path.exists():
        LOG.info("pretrain: fits %s to the patches", params.model.target.kind)
        fitted = fit_target(params.model.target, _patches(params, reader), params.seed)
        assert fitted is not None
        with replacing_file(path) as temporary:
            save_file(fitted, temporary)
    place.wait_for_all()
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it to fit it again") from None


def _patches(params: Params, reader: ShardReader) -> Iterator[Tensor]:
    """Yield normalised patches (n, P) of images as evaluation sees them, those with data."""
    model = params.model
    normalize = PixelNormalizer(reader.info.statistics)
    batches = evaluation_batches(
        reader,
        model,
        workers=params.runtime.workers,
        batch=256,
        positions=evenly_spread(len(reader), _IMAGES),
    )
    for batch in batches:
        stored = batch.images
        patches = patchify(pad_to_patches(normalize(stored), model.patch_size), model.patch_size)
        whole = torch.ones_like(stored[:, 0], dtype=torch.bool)
        holding = whole if model.mask.no_data is None else holding_data(stored, model.mask.no_data)
        yield patches[valid_patches(holding, model.patch_size)]
