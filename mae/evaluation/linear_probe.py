"""Linear probe: how much of the classes a linear map can read from frozen features.

MAE's recipe (arXiv 2111.06377, appendix A.1): batch normalisation without affine parameters,
then a linear layer (initial standard deviation 0.01), learned with LARS. Features are computed
once, from the centre crop; unlike the published recipe there is no augmentation, which makes
this minutes instead of days and costs some accuracy. The random encoder gets the same recipe:
batch normalisation and LARS make its learning rate mean the same on either's features.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae.data.dataset import read_dataset_info
from mae.errors import ParamsError
from mae.evaluation.accuracy import Accuracy, measure_accuracy
from mae.evaluation.features import (
    FeatureBatch,
    FeatureLoader,
    check_encoder_fits,
    extract,
    feature_of,
)
from mae.evaluation.labelled import train_and_test, why_not_classifiable
from mae.evaluation.outcome import Outcome, mean_and_std
from mae.hashing import stream
from mae.model.artifact import load_encoder, random_encoder
from mae.params import Params
from mae.training.devices import Place
from mae.training.lars import LARS
from mae.training.task import Task
from mae.training.trainer import Trainer

PROTOCOL = "linear_probe"


class LinearProbe(Task):
    """Features (N, D) -> cross entropy of batch-normalised features under a linear layer."""

    def __init__(self, dim: int, classes: int, seed: int) -> None:
        super().__init__()
        # Features do not move, so the plain average over batches is their true statistics; the
        # usual decaying one would still remember its start after a short run.
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6, momentum=None)
        self.head = nn.Linear(dim, classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(seed, "linear probe head") >> 1)
            nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def logits(self, features: Tensor) -> Tensor:
        return self.head(self.norm(features))

    def forward(self, batch: FeatureBatch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.logits(batch.features).float()
        return nn.functional.cross_entropy(logits, batch.labels), {}


def run(params: Params, shards: Path, pretrained: Path, device: torch.device) -> Outcome:
    """Probe the pretrained encoder and a random one of its shape, `seeds` times each.

    A seed decides the initial layer and the order of the images. Raises DataError for an
    encoder that does not fit the data, for a class that train lacks and for a split without
    labels.
    """
    info = read_dataset_info(shards)
    reason = why_not_classifiable(info)
    if reason is not None:
        return Outcome(PROTOCOL, skipped=reason)
    artifact = load_encoder(pretrained)
    check_encoder_fits(artifact, info)
    probe = params.evaluate.linear_probe
    if probe.batch < 2:
        raise ParamsError("evaluate.linear_probe.batch: batch normalisation needs 2 at least")
    train, test = train_and_test(shards)
    untrained = random_encoder(artifact.encoder.architecture, params.seed)
    extractors = {
        "pretrained": feature_of(artifact.encoder, probe.feature, device),
        "random": feature_of(untrained, probe.feature, device),
    }
    train_features, test_features = (
        extract(split, artifact, extractors, device, params.runtime) for split in (train, test)
    )
    measured = {
        name: [
            fit_and_test(
                params,
                (train_features[name], train.labels),
                (test_features[name], test.labels),
                classes=len(info.classes),
                seed=params.seed + run,
                device=device,
            )
            for run in range(probe.seeds)
        ]
        for name in extractors
    }
    return Outcome(
        PROTOCOL,
        numbers=_numbers(measured),
        detail={
            **{
                name: [accuracy.to_dict(info.classes) for accuracy in accuracies]
                for name, accuracies in measured.items()
            },
            "recipe": probe.describe(len(train)),
            "images": {split.name: len(split) for split in (train, test)},
        },
    )


def fit_and_test(
    params: Params,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    classes: int,
    seed: int,
    device: torch.device,
) -> Accuracy:
    """Learn the layer on train and return its accuracy on test; each is (features, labels)."""
    probe = params.evaluate.linear_probe
    task = LinearProbe(train[0].shape[1], classes, seed)
    Trainer(
        task,
        FeatureLoader(*train, probe, seed, "linear probe"),
        probe,
        seed=seed,
        place=Place(device),
        runtime=params.runtime,
        make_optimizer=LARS,
        title="linear probe",
    ).run()
    with torch.no_grad():
        predictions = task.logits(test[0].to(device)).argmax(dim=1).cpu()
    return measure_accuracy(predictions, test[1], classes)


def _numbers(measured: dict[str, list[Accuracy]]) -> dict[str, float]:
    numbers: dict[str, Any] = {}
    for name, suffix in (("pretrained", ""), ("random", "_random")):
        top1 = mean_and_std([accuracy.top1 for accuracy in measured[name]])
        balanced = mean_and_std([accuracy.balanced for accuracy in measured[name]])
        numbers[f"accuracy{suffix}"], numbers[f"accuracy{suffix}_std"] = top1
        numbers[f"balanced_accuracy{suffix}"], numbers[f"balanced_accuracy{suffix}_std"] = balanced
    return numbers
