"""Whether an exported encoder tells images apart as torch does: neighbours and decisions."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mae.data.dataset import read_dataset_info
from mae.evaluation.arms import frozen_arm
from mae.evaluation.labelled import LabelledSplit, labelled_split, why_not_classifiable
from mae.evaluation.logistic import LinearModel, fit_logistic
from mae.model.artifact import EncoderArtifact
from mae.params import Feature, RuntimeParams
from mae.pixels import PixelNormalizer

_LEARNED_FROM = 1024  # images of train, at most
_C = 1.0

# What torch itself sees as equal in float32: either of two such is as right as the other.
_SAME_COSINE = 1e-6
_SAME_LOGIT = 1e-4


def neighbours_kept(expected: NDArray, got: NDArray) -> float:
    """Return the share of vectors (N, D) whose nearest other one, by cosine, is the same."""
    if len(expected) < 3:
        return 1.0
    true, found = _similarities(expected), _similarities(got).argmax(axis=1)
    chosen = np.take_along_axis(true, found[:, None], axis=1)[:, 0]
    return float((chosen >= true.max(axis=1) - _SAME_COSINE).mean())


def _similarities(vectors: NDArray) -> NDArray[np.float64]:
    vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(lengths, np.finfo(np.float64).tiny)
    similarities = unit @ unit.T
    np.fill_diagonal(similarities, -2.0)
    return similarities


def decisions_kept(expected: NDArray, got: NDArray) -> float:
    """Return the share of images whose likeliest class, by logits (N, K), is the same."""
    chosen = np.take_along_axis(expected, got.argmax(axis=1)[:, None], axis=1)[:, 0]
    best = expected.max(axis=1)
    return float((chosen >= best - _SAME_LOGIT * (1 + np.abs(best))).mean())


def fit_probe(
    artifact: EncoderArtifact, shards: Path, feature: Feature, runtime: RuntimeParams
) -> LinearModel | str:
    """Return a linear probe of torch's own features of some of train, or why there is none."""
    info = read_dataset_info(shards)
    reason = why_not_classifiable(info)
    if reason is not None:
        return reason
    train = labelled_split(shards, "train").evenly_spread(_LEARNED_FROM)
    if len(train.labels.unique()) < 2:
        return f"the labelled images in train of {shards} are all of one class"
    features = _features(artifact, train, feature, runtime)
    return fit_logistic(features, train.labels, len(info.classes), _C)


@torch.no_grad()
def _features(
    artifact: EncoderArtifact, split: LabelledSplit, feature: Feature, runtime: RuntimeParams
) -> torch.Tensor:
    normalize = PixelNormalizer(artifact.statistics)
    batches = split.batches(frozen_arm("pretrained", artifact), runtime.workers)
    parts = [getattr(artifact.encoder(normalize(batch.images)), feature) for batch in batches]
    return torch.cat(parts)
