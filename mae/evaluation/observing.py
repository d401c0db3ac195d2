"""What is looked at while pretraining: whether it learns, seen on images that it does not learn.

Nothing here changes the run: the model comes back in the mode it was in, nothing is drawn from
torch's generators, and no gradient is made. The numbers are functions of the weights alone.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from mae.data.dataset import read_dataset_info
from mae.data.loading.batch import Batch
from mae.data.loading.loader import EvalLoader
from mae.evaluation.labelled import LabelledSplit, all_images
from mae.evaluation.neighbours import Bank, knn_predict
from mae.evaluation.reconstructing import Sums, measure
from mae.evaluation.spectrum import (
    effective_rank,
    eigenvalues,
    has_collapsed,
    moments_of,
    rank_me,
)
from mae.model.autoencoder import Autoencoder
from mae.model.convolutional import ConvolutionalAutoencoder
from mae.model.methods import PretrainingModel, Supervised
from mae.params import Params
from mae.pixels import PixelStatistics
from mae.training.devices import AUTOCAST_DTYPE, Place, resolve_precision
from mae.training.objective import Objective
from mae.training.pretraining import masked_loss_over

LOG = logging.getLogger(__name__)

Draw = Callable[
    [Autoencoder | ConvolutionalAutoencoder, PixelStatistics, Tensor, Tensor, Path], object
]
"""Model, statistics, stored images (N, C, H, W), their ids and the PNG to write."""

_BATCH = 256
_DRAWN = 8
_MOST_CHANNELS = 16  # more would fill the journal
_BANK = 4  # training images that vote, for each held-out image
_FALLEN = 0.5  # of the most directions filled before: a collapse, and no slow beginning
_K, _TEMPERATURE = 20, 0.07  # those of arXiv 1805.01978 and DINO, for the smaller bank


class Observer:
    """observer(model, step, folder) -> numbers; with several processes, called by all of them.

    - val_loss: of the method, on the held-out images, under masks that are always the same.
    - error_channel_0...: squared error of the predicted pixels, in the data's variance.
    - patch_similarity, view_similarity: see mae/evaluation/reconstructing.py.
    - rank_me, effective_rank, collapsed (0 or 1: below evaluate.quality.collapse, as all encoders
      are that have hardly learned): of the mean feature.
    - knn_accuracy: of the mean feature, where there are labels.

    What cannot be measured is left out. `draw` makes folder/observed/step-NNNNNNN.png.
    """

    def __init__(
        self, params: Params, shards: Path, place: Place, draw: Draw | None = None
    ) -> None:
        self._params = params
        self._shards = shards
        self._place = place
        self._draw = draw
        self._info = read_dataset_info(shards)
        precision = resolve_precision(params.pretrain.precision, place.device)
        self._dtype = AUTOCAST_DTYPE[precision]
        self._objective: Objective | None = None
        self._best_rank = 0.0
        self._warned = False

    @torch.no_grad()
    def __call__(self, model: PretrainingModel, step: int, folder: Path) -> dict[str, float]:
        with _as_found(model):
            with torch.autocast(
                self._place.device.type, self._dtype, enabled=self._dtype is not None
            ):
                statistics = self._info.statistics
                loss = masked_loss_over(self._batches, model, statistics, self._place.device)
                features, numbers = self._looked_at(model)
                bank = self._bank_features(model)
            numbers = {"val_loss": loss, **numbers, **self._spread(features, step)}
            if bank is not None:
                numbers["knn_accuracy"] = self._knn_accuracy(features, bank)
            self._picture(model, step, folder)
        return numbers

    # --- images -------------------------------------------------------------------------------

    @cached_property
    def _held_out(self) -> LabelledSplit:
        """Images of val, or, where it is empty, of train."""
        split = "val" if self._info.splits.get("val") else "train"
        if split == "train" and self._place.leads:
            LOG.warning(
                "there are no val images to look at while pretraining: training images take "
                "their place, so losses look better than they are (see data.splits.val)"
            )
        return all_images(self._shards, split, self._params.runtime.observe.images)

    @cached_property
    def _batches(self) -> list[Batch]:
        """The held-out images, decoded once and kept."""
        return list(self._loader(self._held_out))

    @cached_property
    def _bank(self) -> LabelledSplit | None:
        """Labelled training images that are not held out, spread evenly; None without k-NN."""
        wanted = self._params.runtime.observe.knn and len(self._info.classes) > 1
        if not wanted or not (self._held_out.labels >= 0).any():
            return None
        train = all_images(self._shards, "train")
        usable = train.labels >= 0
        if self._held_out.name == "train":
            usable[self._held_out.positions] = False
        rows = usable.nonzero()[:, 0]
        if not len(rows):
            return None
        return train.take(rows).evenly_spread(_BANK * len(self._held_out))

    def _loader(self, images: LabelledSplit) -> EvalLoader:
        return images.batches(self._params.model, self._params.runtime.workers, _BATCH)

    # --- numbers ------------------------------------------------------------------------------

    def _objective_of(self, model: PretrainingModel) -> Objective:
        """Made once: some losses read a network of their own from the disk."""
        if self._objective is None:
            self._objective = Objective(model, self._info.statistics).to(self._place.device)
        return self._objective

    def _looked_at(self, model: PretrainingModel) -> tuple[Tensor, dict[str, float]]:
        """Return the held-out images' mean features (n, D), and how well they are guessed."""
        objective = self._objective_of(model)
        features, total = [], None
        for batch in self._batches:
            batch = batch.to(self._place.device)
            images = objective.normalize(batch.images)
            seen = model.encoder(images)
            features.append(seen.mean.float())
            sums = measure(model, images, batch.ids, objective.valid(batch.images), seen)
            total = sums if total is None or sums is None else Sums.plus(total, sums)
        return torch.cat(features), {} if total is None else total.numbers(_MOST_CHANNELS)

    def _bank_features(self, model: PretrainingModel) -> Tensor | None:
        """Return the mean features of the bank, each process having computed its share."""
        if self._bank is None:
            return None
        normalize = self._objective_of(model).normalize
        share = self._bank.take(self._place.share(len(self._bank)))
        parts = [
            model.encoder(normalize(batch.images.to(self._place.device))).mean.float()
            for batch in self._loader(share)
        ]
        return self._place.gather(torch.cat(parts), len(self._bank))

    def _spread(self, features: Tensor, step: int) -> dict[str, float]:
        moments = moments_of(features)
        rank = effective_rank(eigenvalues(moments))
        width = features.shape[1]
        collapsed = has_collapsed(
            rank, len(features), width, self._params.evaluate.quality.collapse
        )
        self._warn_of_collapse(rank, width, step, collapsed)
        return {
            "rank_me": rank_me(moments),
            "effective_rank": rank,
            "collapsed": float(collapsed),
        }

    def _warn_of_collapse(self, rank: float, width: int, step: int, collapsed: bool) -> None:
        """Say it once. An encoder that has only begun fills few directions too, but ever more."""
        self._best_rank = max(self._best_rank, rank)
        fallen = rank == 0 or rank < _FALLEN * self._best_rank
        if not (collapsed and fallen) or self._warned or not self._place.leads:
            return
        self._warned = True
        LOG.warning(
            "at step %d the features of held-out images fill %.1f of %d directions, and filled "
            "%.1f before: they collapse, and such an encoder tells little apart. Look at the "
            "pictures in observed/, lower pretrain.blr, or hide more (model.mask.ratio)",
            *(step, rank, width, self._best_rank),
        )

    def _knn_accuracy(self, features: Tensor, bank: Tensor) -> float:
        assert self._bank is not None
        known = self._held_out.labels >= 0
        k = min(_K, len(bank))
        voters = Bank(bank, self._bank.labels, len(self._info.classes))
        queries = features[known.to(features.device)]
        predicted = knn_predict(voters, queries, [k], _TEMPERATURE, self._place.device)[k]
        return float((predicted.cpu() == self._held_out.labels[known]).double().mean())

    # --- picture ------------------------------------------------------------------------------

    def _picture(self, model: PretrainingModel, step: int, folder: Path) -> None:
        if self._draw is None or not self._place.leads or isinstance(model, Supervised):
            return
        first = self._batches[0]
        path = folder / "observed" / f"step-{step:07d}.png"
        try:
            statistics = self._info.statistics
            self._draw(model, statistics, first.images[:_DRAWN], first.ids[:_DRAWN], path)
        except OSError as error:  # a full disk must not end a run for the sake of a picture
            LOG.warning("%s was not drawn: %s", path, error)


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Within, the model is in eval mode; after, every part is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
