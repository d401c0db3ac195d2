"""k nearest neighbours on frozen features: what an encoder knows without learning anything more.

The protocol of InstDisc (arXiv 1805.01978, section 3.4) and DINO: cosine similarity s, each of
the k nearest training images votes for its class with weight exp(s / temperature). k is the one
best on val; test is read once, with that k.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae.data.dataset import read_dataset_info
from mae.errors import DataError
from mae.evaluation.accuracy import Accuracy, measure_accuracy
from mae.evaluation.features import check_encoder_fits, extract, feature_of, pixels
from mae.evaluation.labelled import (
    LabelledSplit,
    labelled_split,
    train_and_test,
    why_not_classifiable,
)
from mae.evaluation.outcome import Outcome
from mae.model.artifact import EncoderArtifact, load_encoder, random_encoder
from mae.params import KnnParams, Params

PROTOCOL = "knn"

# Similarities held at a time: 512 x 16384 float32 are 32 MB, whatever the number of images.
_QUERIES, _BANK = 512, 16384


@dataclass(frozen=True)
class Bank:
    """Unit vectors float32 (n, D) of the training images and their labels int64 (n,)."""

    vectors: Tensor
    labels: Tensor
    classes: int


@dataclass(frozen=True)
class KnnResult:
    """Accuracy on test with the k that did best on val; val_accuracy for each k tried."""

    k: int
    accuracy: Accuracy
    val_accuracy: dict[int, float]

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        by_k = {str(k): value for k, value in self.val_accuracy.items()}
        return {"k": self.k, "val_accuracy": by_k, **self.accuracy.to_dict(classes)}


def run(params: Params, shards: Path, pretrained: Path, device: torch.device) -> Outcome:
    """Measure the pretrained encoder beside a random one of its shape and the raw pixels.

    Raises DataError for an encoder that does not fit the data, for a class that train lacks,
    for a split without labels, and for fewer training images than k.
    """
    info = read_dataset_info(shards)
    reason = why_not_classifiable(info)
    if reason is not None:
        return Outcome(PROTOCOL, skipped=reason)
    artifact = load_encoder(pretrained)
    check_encoder_fits(artifact, info)
    knn = params.evaluate.knn
    train, test = train_and_test(shards)
    val = labelled_split(shards, "val")
    _check_k(knn, len(train), shards)
    features = _features(params, artifact, [train, val, test], device)
    results = {}
    for name in features[0]:
        bank_vectors, val_vectors, test_vectors = (
            nn.functional.normalize(part[name], dim=1) for part in features
        )
        bank = Bank(bank_vectors, train.labels, len(info.classes))
        results[name] = choose_and_test(
            bank, (val_vectors, val.labels), (test_vectors, test.labels), knn, device
        )
    return Outcome(
        PROTOCOL,
        numbers={
            "accuracy": results["pretrained"].accuracy.top1,
            "accuracy_random": results["random"].accuracy.top1,
            "accuracy_pixels": results["pixels"].accuracy.top1,
            "balanced_accuracy": results["pretrained"].accuracy.balanced,
            "k": results["pretrained"].k,
        },
        detail={
            **{name: result.to_dict(info.classes) for name, result in results.items()},
            "images": {split.name: len(split) for split in (train, val, test)},
        },
    )


def _check_k(knn: KnnParams, images: int, shards: Path) -> None:
    if max(knn.k) > images:
        raise DataError(
            f"evaluate.knn.k asks for {max(knn.k)} neighbours and train of {shards} has {images} "
            "labelled images: remove that k, or add images"
        )


def _features(
    params: Params, artifact: EncoderArtifact, splits: list[LabelledSplit], device: torch.device
) -> list[dict[str, Tensor]]:
    feature = params.evaluate.knn.feature
    untrained = random_encoder(artifact.encoder.architecture, params.seed)
    extractors = {
        "pretrained": feature_of(artifact.encoder, feature, device),
        "random": feature_of(untrained, feature, device),
        "pixels": pixels,
    }
    return [extract(split, artifact, extractors, device, params.runtime) for split in splits]


def choose_and_test(
    bank: Bank,
    val: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    knn: KnnParams,
    device: torch.device,
) -> KnnResult:
    """Choose k on val (the smallest of equals), then read test. Each is (unit vectors, labels)."""
    tried = sorted(set(knn.k))
    predictions = knn_predict(bank, val[0], tried, knn.temperature, device)
    val_accuracy = {k: measure_accuracy(predictions[k], val[1], bank.classes).top1 for k in tried}
    k = max(tried, key=lambda one: val_accuracy[one])
    predicted = knn_predict(bank, test[0], [k], knn.temperature, device)[k]
    return KnnResult(k, measure_accuracy(predicted, test[1], bank.classes), val_accuracy)


def knn_predict(
    bank: Bank, queries: Tensor, ks: list[int], temperature: float, device: torch.device
) -> dict[int, Tensor]:
    """Return the predicted labels, int64 (N,), of unit vectors (N, D) for each k in `ks`."""
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    for similarities, labels in _neighbours(bank, queries, max(ks), device):
        # Relative to the nearest, so that a small temperature cannot overflow.
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        for k in ks:
            votes = torch.zeros(len(weights), bank.classes, device=device)
            votes.scatter_add_(1, labels[:, :k], weights[:, :k])
            predictions[k].append(votes.argmax(dim=1).cpu())
    return {k: torch.cat(parts) for k, parts in predictions.items()}


def _neighbours(
    bank: Bank, queries: Tensor, k: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for some queries at a time, the k largest similarities, falling, and their labels."""
    for some in queries.split(_QUERIES):
        some = some.to(device)
        best = torch.empty(len(some), 0, device=device)
        labels = torch.empty(len(some), 0, dtype=torch.int64, device=device)
        for vectors, their_labels in zip(
            bank.vectors.split(_BANK), bank.labels.split(_BANK), strict=True
        ):
            found = torch.cat([best, some @ vectors.to(device).mT], dim=1)
            owners = torch.cat([labels, their_labels.to(device).expand(len(some), -1)], dim=1)
            best, rows = found.topk(min(k, found.shape[1]), dim=1)
            labels = owners.gather(1, rows)
        yield best, labels
