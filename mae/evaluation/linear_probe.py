"""Linear probe: how much of the classes a linear map can read from frozen features.

MAE's recipe (arXiv 2111.06377, appendix A.1): batch normalisation without affine parameters,
then a linear layer (initial standard deviation 0.01), learned with LARS, which makes a learning
rate mean the same on any encoder's features. As published every epoch sees new crops; with
`augment: null` the features of the centre crop are computed once, which makes this seconds instead
of days and costs some accuracy. Each encoder's rate is the best on minival; then the layer is
learned anew on all of train, and test is read once.

Several layers are learned at a time on the same batches, as in DINOv2 (arXiv 2304.07193): all
rates, then all seeds. So seeds differ in the initial layer and share the order of the images.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae.data.loading.loader import TrainLoader
from mae.evaluation.arms import frozen_arms
from mae.evaluation.feature_cache import features_of
from mae.evaluation.feature_loader import FeatureLoader
from mae.evaluation.features import Embedder, FrozenArm, select
from mae.evaluation.intervals import interval_over_seeds
from mae.evaluation.labelled import LabelledSplit
from mae.evaluation.minival import minival_rows
from mae.evaluation.opening import open_labelled
from mae.evaluation.outcome import Outcome, compared, suffix_of
from mae.evaluation.published import expected
from mae.evaluation.scores import Scores, mean_numbers, measure_scores
from mae.hashing import stream
from mae.params import Params
from mae.training.devices import Place
from mae.training.lars import LARS
from mae.training.task import Task
from mae.training.trainer import Loader, Trainer

LOG = logging.getLogger(__name__)

PROTOCOL = "linear_probe"

Vectors = Callable[[Any], Tensor]
"""A batch -> its frozen features float32 (n, D)."""


class FrozenBatchNorm(nn.Module):
    """nn.BatchNorm1d without affine parameters, over a batch that several processes share.

    For features (n, D) that carry no gradient: float64 sums travel between the processes, so their
    number does not show in the result.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, dim: int, place: Place, eps: float = 1e-6) -> None:
        super().__init__()
        self.place, self.eps = place, eps
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Normalise by the batch's own statistics while learning, then by their average."""
        mean, variance = self._learn(features) if self.training else (self.mean, self.variance)
        return (features - mean.float()) * (variance + self.eps).rsqrt().float()

    def _learn(self, features: Tensor) -> tuple[Tensor, Tensor]:
        images = len(features) * self.place.world_size
        exact = features.double()
        mean, square = self.place.sum(torch.stack([exact.sum(0), exact.square().sum(0)])) / images
        variance = (square - mean.square()).clamp(min=0)
        # Features do not move, so the plain average over batches is their true statistics; the
        # usual decaying one would still remember its start after a short run.
        self.batches += 1
        self.mean += (mean - self.mean) / self.batches
        self.variance += (variance * images / (images - 1) - self.variance) / self.batches
        return mean, variance


@dataclass(frozen=True)
class Layer:
    """One of the layers that are learned side by side: the seed of its initial weights, and its
    learning rate as a multiple of the schedule's."""

    seed: int
    scale: float = 1.0


class LinearProbe(Task):
    """Batches -> cross entropy of linear layers on their normalised frozen features.

    The layers see the same batches and none affects another, so one pass tries many.
    """

    def __init__(
        self, vectors: Vectors, dim: int, classes: int, place: Place, layers: Sequence[Layer]
    ) -> None:
        super().__init__()
        self.vectors = vectors
        self.norm = FrozenBatchNorm(dim, place)
        self.heads = nn.ModuleList(_initial_head(dim, classes, layer.seed) for layer in layers)
        self.layers = tuple(layers)

    def forward(self, batch: Any, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the layers' losses."""
        with torch.no_grad():
            features = self.norm(self.vectors(batch))
        losses = [
            nn.functional.cross_entropy(head(features).float(), batch.labels) for head in self.heads
        ]
        return torch.stack(losses).sum(), {}

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return [
            {"params": [*head.parameters()], "lr_scale": layer.scale, "weight_decay": weight_decay}
            for head, layer in zip(self.heads, self.layers, strict=True)
        ]

    @torch.no_grad()
    def logits(self, features: Tensor) -> list[Tensor]:
        """Return the answers of each layer, float32 (n, classes), to features (n, D)."""
        normalised = self.norm(features)
        return [head(normalised) for head in self.heads]


def _initial_head(dim: int, classes: int, seed: int) -> nn.Linear:
    head = nn.Linear(dim, classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "linear probe head") >> 1)
        nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


@dataclass(frozen=True)
class Probed:
    """One encoder's result: the rate taken, what each reached on minival, and a run per seed."""

    blr: float
    minival_accuracy: dict[float, float]
    runs: tuple[Scores, ...]

    @property
    def accuracies(self) -> tuple[float, ...]:
        return tuple(run.top1 for run in self.runs)

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        return {
            "blr": self.blr,
            "minival_accuracy": {f"{blr:g}": share for blr, share in self.minival_accuracy.items()},
            "interval": interval_over_seeds(self.accuracies),
            "runs": [run.to_dict(classes) for run in self.runs],
        }


@dataclass(frozen=True)
class Prober:
    """The probes of one encoder."""

    params: Params
    train: LabelledSplit
    test: LabelledSplit
    classes: tuple[str, ...]
    arm: FrozenArm
    place: Place

    def probe(self) -> Probed:
        """Choose the rate on minival (the smallest of equals), then learn from all of train."""
        probe, seed = self.params.evaluate.linear_probe, self.params.seed
        rates = sorted(set(probe.blr))
        reached = self._on_minival(rates) if len(rates) > 1 else {}
        blr = max(rates, key=lambda rate: reached.get(rate, 0.0))
        layers = [Layer(seed + run) for run in range(probe.seeds)]
        everything = torch.arange(len(self.train))
        test = self._features(self.test), self.test.labels
        return Probed(blr, reached, tuple(self._measure(everything, blr, layers, *test)))

    def _on_minival(self, rates: list[float]) -> dict[float, float]:
        seed = self.params.seed
        fit, held = minival_rows(self.train, self.params.evaluate.minival, seed)
        minival = self._train_features[held], self.train.labels[held]
        layers = [Layer(seed, rate / rates[0]) for rate in rates]
        scores = self._measure(fit, rates[0], layers, *minival)
        return {rate: one.top1 for rate, one in zip(rates, scores, strict=True)}

    def _measure(
        self, rows: Tensor, blr: float, layers: list[Layer], features: Tensor, labels: Tensor
    ) -> list[Scores]:
        """Learn layers from some rows of train, and score each on held-out features."""
        classes = len(self.classes)
        task = LinearProbe(self._vectors(), features.shape[1], classes, self.place, layers)
        Trainer(
            task,
            self._loader(rows),
            self.params.evaluate.linear_probe.optim(blr),
            seed=self.params.seed,
            place=self.place,
            runtime=self.params.runtime,
            make_optimizer=LARS,
            title="linear probe",
        ).run()
        answers = task.logits(features.to(self.place.device))
        return [measure_scores(logits.cpu(), labels) for logits in answers]

    def _features(self, split: LabelledSplit) -> Tensor:
        """Return the features of the centre crops, float32 (n, D)."""
        feature = self.params.evaluate.linear_probe.feature
        return features_of(self.arm, split, feature, self.params, self.place)

    @cached_property
    def _train_features(self) -> Tensor:
        return self._features(self.train)

    def _vectors(self) -> Vectors:
        probe = self.params.evaluate.linear_probe
        if probe.augment is None:
            return lambda batch: batch.features
        embed = Embedder(self.arm, self.place.device)
        return lambda batch: select(embed(batch.images), self.arm, probe.feature)

    def _loader(self, rows: Tensor) -> Loader:
        probe, runtime = self.params.evaluate.linear_probe, self.params.runtime
        seed = self.params.seed
        if probe.augment is None:
            return FeatureLoader(
                *(self._train_features, self.train.labels, rows),
                probe.optim(probe.blr[0]),
                self.place,
                seed=seed,
                purpose=PROTOCOL,
            )
        return TrainLoader(
            self.train.reader,
            height=self.arm.height,
            width=self.arm.width,
            batch=probe.batch,
            seed=seed,
            purpose=PROTOCOL,
            augment=probe.augment,
            workers=runtime.workers,
            cache_mb=runtime.cache_mb,
            positions=self.train.positions[rows],
            rank=self.place.rank,
            world_size=self.place.world_size,
        )


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Probe the pretrained encoder beside a random one and the baselines, `seeds` times each.

    Raises DataError for an encoder that does not fit the data, for a class that train lacks and
    for a split without labels.
    """
    opened = open_labelled(shards, pretrained)
    if isinstance(opened, str):
        return Outcome(PROTOCOL, skipped=opened)
    info, artifact, train, test = opened
    probed = {}
    for name, arm in frozen_arms(params, artifact, pixels=False).items():
        probed[name] = Prober(params, train, test, info.classes, arm, place).probe()
        mean = sum(probed[name].accuracies) / len(probed[name].accuracies)
        LOG.info("linear probe: %s: %.3f at blr %g", name, mean, probed[name].blr)
    ours = probed["pretrained"]
    numbers: dict[str, float] = {"blr": ours.blr}
    for name, one in probed.items():
        numbers |= mean_numbers(one.runs, suffix_of(name))
    return Outcome(
        PROTOCOL,
        numbers=numbers,
        comparisons=compared(
            "Linear probe", {name: one.accuracies for name, one in probed.items()}, len(test)
        ),
        detail={
            **{name: one.to_dict(info.classes) for name, one in probed.items()},
            "recipe": params.evaluate.linear_probe.optim(ours.blr).describe(len(train)),
            "images": {split.name: len(split) for split in (train, test)},
        },
        expected=expected(PROTOCOL, artifact.info, info, params),
    )
