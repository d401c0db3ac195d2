"""Finding images like a given one: test images ask, training images answer, by cosine.

recall@k is the share of queries with an image of their class among the k nearest; mean average
precision looks at the whole gallery in order of similarity. Nothing is learned or chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mae.data.dataset import DatasetInfo, read_dataset_info
from mae.errors import DataError
from mae.evaluation.arms import frozen_arm, frozen_arms
from mae.evaluation.feature_cache import features_of
from mae.evaluation.features import FrozenArm, check_encoder_fits
from mae.evaluation.labelled import (
    LabelledSplit,
    all_images,
    train_and_test,
    why_not_classifiable,
)
from mae.evaluation.neighbour_picture import draw_neighbours, neighbours_of
from mae.evaluation.outcome import Outcome, compared, suffix_of
from mae.model.artifact import EncoderArtifact, load_encoder
from mae.params import Params
from mae.training.devices import Place

PROTOCOL = "retrieval"

# Similarities sorted at a time, and how many of the gallery are made unit vectors at a time.
_SIMILARITIES, _GALLERY = 1 << 24, 16384


@dataclass(frozen=True)
class Retrieval:
    """recall: of each k. average_precision: the mean over the queries (mAP). Shares, 0 to 1."""

    recall: dict[int, float]
    average_precision: float

    def numbers(self, suffix: str) -> dict[str, float]:
        recalls = {f"recall_at_{k}{suffix}": share for k, share in self.recall.items()}
        return {f"map{suffix}": self.average_precision, **recalls}


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Measure the pretrained encoder beside a random one, the named baselines and raw pixels.

    Draws neighbours.png, also where there are no labels to measure by. Raises DataError for an
    encoder that does not fit the data, and for a gallery smaller than every k.
    """
    info = read_dataset_info(shards)
    if info.skipped:
        return Outcome(PROTOCOL, skipped=info.skipped)
    artifact = load_encoder(pretrained)
    check_encoder_fits(artifact, info)
    reason = why_not_classifiable(info)
    if reason is not None:
        return _drawn_only(reason, info, params, artifact, place, pictures)
    gallery, queries = train_and_test(shards)
    ks, left_out = _usable(params.evaluate.retrieval.k, len(gallery), shards)
    arms = frozen_arms(params, artifact, pixels=True)
    results = {
        name: _measured(arm, gallery, queries, ks, params, place) for name, arm in arms.items()
    }
    _draw(params, arms["pretrained"], gallery, queries, info.classes, place, pictures)
    numbers: dict[str, float] = {}
    for name, result in results.items():
        numbers |= result.numbers(suffix_of(name))
    return Outcome(
        PROTOCOL,
        numbers=numbers,
        comparisons=compared(
            "Retrieval",
            {name: [result.average_precision] for name, result in results.items()},
            len(queries),
            metric="mean average precision",
        ),
        detail={
            "images": {"gallery": len(gallery), "queries": len(queries)},
            "remarks": left_out,
        },
    )


def retrieve(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    ks: Sequence[int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return, for each query, whether its class is among the k nearest, and average precision.

    gallery (n, D), queries (N, D): of any length, mapped from disk or not. Returns bool
    (N, len(ks)) and float64 (N,), the latter NaN for a query whose class the gallery lacks. Of
    equally similar images none is nearer: precision is that after all of them.
    """
    found, precision = [], []
    labels = gallery_labels.to(device)
    at_once = max(1, _SIMILARITIES // len(gallery))
    for some, their_labels in zip(queries.split(at_once), query_labels.split(at_once), strict=True):
        similarities, order = _cosines(some, gallery, device).sort(dim=1, descending=True)
        right = labels[order] == their_labels.to(device)[:, None]
        first = torch.stack([right[:, :k].any(dim=1) for k in ks], dim=1)
        found.append(first.cpu())
        precision.append(_average_precision(similarities, right).cpu())
    return torch.cat(found), torch.cat(precision)


def _cosines(queries: Tensor, gallery: Tensor, device: torch.device) -> Tensor:
    """Return cosines (N, n), reading some of the gallery at a time."""
    queries = nn.functional.normalize(queries.to(device), dim=1)
    blocks = gallery.split(_GALLERY)
    parts = [queries @ nn.functional.normalize(block.to(device), dim=1).mT for block in blocks]
    return torch.cat(parts, dim=1)


def _average_precision(similarities: Tensor, right: Tensor) -> Tensor:
    """similarities (N, n) falling, right bool (N, n) -> float64 (N,)."""
    count = right.shape[1]
    ranks = torch.arange(1, count + 1, device=right.device)
    precision = right.cumsum(dim=1).double() / ranks
    # The rank of the last of those equally similar, at each place.
    ends = nn.functional.pad(similarities[:, 1:] != similarities[:, :-1], (0, 1), value=True)
    last = torch.where(ends, ranks - 1, count).flip(1).cummin(dim=1).values.flip(1)
    return (precision.gather(1, last) * right).sum(dim=1) / right.sum(dim=1)


def _measured(
    arm: FrozenArm,
    gallery: LabelledSplit,
    queries: LabelledSplit,
    ks: Sequence[int],
    params: Params,
    place: Place,
) -> Retrieval:
    """Every process answers its share of the queries."""
    answers, questions = (_features(arm, part, params, place) for part in (gallery, queries))
    mine = place.share(len(queries))
    found, precision = retrieve(
        answers, gallery.labels, questions[mine], queries.labels[mine], ks, place.device
    )
    rows = torch.cat([found.double(), precision[:, None]], dim=1)
    means = place.gather(rows, len(queries)).mean(dim=0).tolist()
    return Retrieval(dict(zip(ks, means[:-1], strict=True)), means[-1])


def _features(arm: FrozenArm, images: LabelledSplit, params: Params, place: Place) -> Tensor:
    return features_of(arm, images, params.evaluate.retrieval.feature, params, place)


def _usable(ks: Sequence[int], images: int, shards: Path) -> tuple[list[int], list[str]]:
    """Return the k's that the gallery is large enough for, and a sentence on the others."""
    usable = sorted({k for k in ks if k <= images})
    too_large = sorted({k for k in ks if k > images})
    if not usable:
        raise DataError(
            f"evaluate.retrieval.k asks for {min(ks)} neighbours or more and train of {shards} has "
            f"{images} labelled images: lower k, or add images"
        )
    listed = ", ".join(map(str, too_large))
    sentence = f"k of {listed} is left out: the gallery has {images} images."
    return usable, [sentence] if too_large else []


# --- picture ----------------------------------------------------------------------------------


def _draw(
    params: Params,
    arm: FrozenArm,
    gallery: LabelledSplit,
    queries: LabelledSplit,
    classes: Sequence[str],
    place: Place,
    pictures: Path,
) -> None:
    """Draw some of the queries, spread evenly over them, with their nearest of the gallery."""
    count = min(params.evaluate.retrieval.shown, len(queries))
    if not count:
        return
    chosen = torch.arange(count) * len(queries) // count
    answers, questions = (_features(arm, part, params, place) for part in (gallery, queries))
    if place.leads:
        rows = neighbours_of(
            (queries.take(chosen), questions[chosen]),
            (gallery, answers),
            *(arm, classes, params.runtime, place.device),
        )
        draw_neighbours(rows, pictures / "neighbours.png")


def _drawn_only(
    reason: str,
    info: DatasetInfo,
    params: Params,
    artifact: EncoderArtifact,
    place: Place,
    pictures: Path,
) -> Outcome:
    """Draw neighbours where there are no labels to measure by."""
    asking = next((split for split in ("test", "val") if info.splits.get(split)), None)
    shown = params.evaluate.retrieval.shown
    if asking is None or not info.splits.get("train") or not shown:
        return Outcome(PROTOCOL, skipped=reason)
    gallery = all_images(info.folder, "train")
    queries = all_images(info.folder, asking, at_most=shown)
    arm = frozen_arm("pretrained", artifact)
    _draw(params, arm, gallery, queries, (), place, pictures)
    sentence = f"{reason}; neighbours.png shows what the encoder finds alike all the same"
    return Outcome(PROTOCOL, skipped=sentence)
