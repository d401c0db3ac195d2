"""Masked-autoencoder pretraining: the task, the identity of a run, and its held-out loss."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mae.data.loading.batch import Batch
from mae.data.loading.evaluation import evaluation_batches, evenly_spread
from mae.data.loading.loader import EvalLoader, TrainLoader
from mae.data.reader import ShardReader
from mae.errors import ParamsError
from mae.files import fingerprint, write_json
from mae.model.methods import PretrainingModel, build_model, resolve_method
from mae.params import Params
from mae.pixels import PixelStatistics
from mae.training.devices import Place, resolve_precision
from mae.training.fitted import fitted_target
from mae.training.journal import read_journal
from mae.training.keeping import Run
from mae.training.numerics import Numerics
from mae.training.objective import Objective
from mae.training.starting import begin_with, identity_of, weights_in
from mae.training.task import Task
from mae.training.trainer import Trainer, adamw

LOG = logging.getLogger(__name__)

# Part of every run's identity: raise it when the same parameters would no longer lead to the
# same weights, so that no run continues from, or is taken for, one of the older kind.
TRAJECTORY = 3

Observer = Callable[[PretrainingModel, int, Path], dict[str, float]]
"""The model, steps done and the run's folder -> what was observed; see Trainer's `observe`."""


class PretrainTask(Task):
    """Batch of images, ids and labels -> the loss of the method; the mask ratio is the epoch's."""

    def __init__(
        self, model: PretrainingModel, statistics: PixelStatistics, seed: int, epochs: int
    ) -> None:
        super().__init__()
        self.autoencoder = model
        self.objective = Objective(model, statistics)
        self.seed = seed
        self.epochs = epochs

    def forward(self, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        ratio = self.autoencoder.params.mask.ratio_at(epoch, self.epochs)
        return self.objective(self.autoencoder, batch, self.seed, epoch, ratio), {}


@dataclass(frozen=True)
class Pretrained:
    """A finished run: the model in eval mode, where it was made, and how it went."""

    autoencoder: PretrainingModel
    statistics: PixelStatistics
    folder: Path
    precision: str
    summary: dict[str, float]


def run_identity(params: Params, precision: str, data_fingerprint: str) -> str:
    """Return 16 hex digits of everything that shapes the weights; runtime settings do not."""
    content = {
        "trajectory": TRAJECTORY,
        "seed": params.seed,
        "model": resolve_method(params.model).model_dump(mode="json"),
        "pretrain": {
            **params.pretrain.model_dump(mode="json"),
            "precision": precision,
            "start_from": identity_of(weights_in(params.pretrain.start_from)),
        },
        "data": data_fingerprint,
    }
    return fingerprint(content)[:16]


def pretrain(
    params: Params, shards: Path, runs: Path, place: Place, observe: Observer | None = None
) -> Pretrained:
    """Pretrain on the train split of `shards`, continuing the run of the same identity in `runs`.

    Raises Interrupted when a signal asked to stop (state saved), DivergedError when going back
    to an earlier state did not help, CheckpointError for a damaged or foreign state.
    """
    params = params.model_copy(update={"model": resolve_method(params.model)})
    reader = ShardReader(shards, "train")
    precision = resolve_precision(params.pretrain.precision, place.device)
    identity = run_identity(params, precision, reader.info.fingerprint)
    folder = runs / identity
    loader = _train_loader(params, reader, place)
    statistics = reader.info.statistics
    fitted = fitted_target(params, reader, folder, place)
    autoencoder = build_model(
        params.model, reader.info.channels, len(reader.info.classes), params.seed, fitted
    )
    start = weights_in(params.pretrain.start_from)
    if start is not None:
        begin_with(autoencoder, start, statistics)
    if place.leads:
        weights = sum(p.numel() for p in autoencoder.parameters()) / 1e6
        LOG.info("pretrain: %s", params.pretrain.describe(loader.images))
        LOG.info("pretrain: %.2f M parameters, %s on %s", weights, precision, place.device)
        LOG.info("pretrain: run %s", folder)
        write_json(folder / "params.json", params.model_dump(mode="json", by_alias=True))
    trainer = Trainer(
        PretrainTask(autoencoder, statistics, params.seed, params.pretrain.epochs),
        loader,
        params.pretrain,
        seed=params.seed,
        place=place,
        runtime=params.runtime,
        make_optimizer=adamw(params.pretrain.betas),
        accumulate=params.pretrain.accumulate,
        title="pretrain",
        numerics=Numerics.from_params(params.pretrain),
        run=Run(folder, identity),
        divergence=params.pretrain.divergence,
        observe=None if observe is None else lambda step: observe(autoencoder, step, folder),
    )
    trainer.run()
    return Pretrained(
        autoencoder=autoencoder.eval(),
        statistics=statistics,
        folder=folder,
        precision=precision,
        summary={
            "steps": trainer.schedule.total,
            "images": loader.images,
            "train_loss": read_journal(folder)[-1]["loss"],
            "val_loss": masked_loss_over(
                held_out(params, shards, batch=256), autoencoder, statistics, place.device
            ),
        },
    )


def _train_loader(params: Params, reader: ShardReader, place: Place) -> TrainLoader:
    return TrainLoader(
        reader,
        height=params.model.height,
        width=params.model.width,
        batch=params.pretrain.batch,
        seed=params.seed,
        purpose="pretrain",
        augment=params.pretrain.augment,
        workers=params.runtime.workers,
        cache_mb=params.runtime.cache_mb,
        rank=place.rank,
        world_size=place.world_size,
        shuffle_window=params.pretrain.shuffle_window,
        jpeg_device=_jpeg_device(params, place),
    )


def _jpeg_device(params: Params, place: Place) -> torch.device | None:
    if params.pretrain.jpeg_decoder == "cpu":
        return None
    if place.device.type != "cuda":
        raise ParamsError("pretrain.jpeg_decoder is cuda and the run is on the CPU: set it to cpu")
    return place.device


def held_out(params: Params, shards: Path, batch: int, at_most: int | None = None) -> EvalLoader:
    """Return the images of the val split as evaluation sees them: all, or some spread evenly."""
    reader = ShardReader(shards, "val")
    return evaluation_batches(
        reader,
        params.model,
        workers=params.runtime.workers,
        batch=batch,
        positions=evenly_spread(len(reader), at_most),
    )


@torch.no_grad()
def masked_loss_over(
    batches: Iterable[Batch],
    autoencoder: PretrainingModel,
    statistics: PixelStatistics,
    device: torch.device,
) -> float:
    """Return the mean loss over the batches, under masks that are the same at every call."""
    objective = Objective(autoencoder, statistics).to(device)
    total, images = 0.0, 0
    for batch in batches:
        total += float(objective(autoencoder, batch.to(device), seed=0, epoch=0)) * len(batch)
        images += len(batch)
    return total / images
