"""What can be said of an encoder without a single label.

How well it guesses what it was not shown (held-out loss under fixed masks), how many directions
its features fill (RankMe, effective rank, the spectrum's slope, uniformity), how far pretraining
has moved it (CKA against a random encoder and against its earlier checkpoints), and an alarm for
features that collapse. RankMe ranks encoders of one kind by their downstream accuracy rather well
(arXiv 2210.02885); none of these numbers replaces a measurement with labels.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mae.data.dataset import DatasetInfo, read_dataset_info
from mae.evaluation.arms import frozen_arm, frozen_arms
from mae.evaluation.earlier import earlier_encoders
from mae.evaluation.feature_cache import features_of
from mae.evaluation.features import FrozenArm, check_encoder_fits
from mae.evaluation.labelled import LabelledSplit, all_images
from mae.evaluation.outcome import Outcome, suffix_of
from mae.evaluation.spectrum import (
    alpha,
    effective_rank,
    eigenvalues,
    has_collapsed,
    linear_cka,
    moments_of,
    rank_me,
    uniformity,
)
from mae.evaluation.spectrum_picture import draw_spectra
from mae.model.artifact import EncoderArtifact, load_autoencoder, load_encoder
from mae.params import FrozenFeature, Params
from mae.training.devices import Place
from mae.training.pretraining import masked_loss_over, run_identity

LOG = logging.getLogger(__name__)

PROTOCOL = "quality"

RUNS = Path("runs/pretrain")

# `mean` has the plain names among the numbers: it is what fine-tuning and retrieval use.
_FEATURES: dict[FrozenFeature, str] = {"mean": "", "cls": "_cls"}


@dataclass(frozen=True)
class Spread:
    """How features (n, D) lie. spectrum: eigenvalues of their covariance, float64 (D,), falling."""

    numbers: dict[str, float]
    spectrum: Tensor
    width: int

    @property
    def has_collapsed(self) -> bool:
        return bool(self.numbers["collapsed"])


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Measure the pretrained encoder beside a random one of its shape and the named baselines.

    On images of val, or of test where there are none, or else of train. Raises DataError for an
    encoder that does not fit the data.
    """
    info = read_dataset_info(shards)
    if info.skipped:
        return Outcome(PROTOCOL, skipped=info.skipped)
    artifact = load_encoder(pretrained)
    check_encoder_fits(artifact, info)
    images = all_images(shards, _split(info), params.evaluate.quality.images)
    arms = frozen_arms(params, artifact, pixels=False)
    features = {
        name: {which: features_of(arm, images, which, params, place) for which in _of(arm)}
        for name, arm in arms.items()
    }
    spreads = {
        name: {
            which: spread_of(vectors, params.evaluate.quality.collapse)
            for which, vectors in by_feature.items()
        }
        for name, by_feature in features.items()
    }
    likeness = {
        f"cka{_FEATURES[which]}_random": linear_cka(vectors, features["random"][which])
        for which, vectors in features["pretrained"].items()
    }
    loss = _held_out_loss(params, pretrained, images, place)
    if place.leads:
        draw_spectra(
            {name: by_feature["mean"].spectrum for name, by_feature in spreads.items()},
            pictures / "spectrum.png",
        )
    numbers = {**_flat(spreads), **{k: v for k, v in likeness.items() if v is not None}}
    if loss is not None:
        numbers["val_loss"] = loss
    return Outcome(
        PROTOCOL,
        numbers=numbers,
        detail={
            "images": {images.name: len(images)},
            "spread": {
                name: {which: spread.numbers for which, spread in by_feature.items()}
                for name, by_feature in spreads.items()
            },
            "drift": _drift(params, artifact, images, features["pretrained"], place),
            "remarks": _remarks(spreads, images, loss, params.evaluate.quality.collapse),
        },
    )


def spread_of(features: Tensor, collapse: float) -> Spread:
    """Measure features (n, D); `collapse`: the share of directions below which it is alarming."""
    moments = moments_of(features)
    spectrum = eigenvalues(moments)
    images, width = features.shape
    effective = effective_rank(spectrum)
    slope = alpha(spectrum)
    return Spread(
        numbers={
            "rank_me": rank_me(moments),
            "effective_rank": effective,
            **({} if slope is None else {"alpha": slope}),
            "uniformity": uniformity(features),
            "collapsed": float(has_collapsed(effective, images, width, collapse)),
        },
        spectrum=spectrum,
        width=width,
    )


def _split(info: DatasetInfo) -> str:
    return next(split for split in ("val", "test", "train") if info.splits.get(split))


def _of(arm: FrozenArm) -> tuple[FrozenFeature, ...]:
    """Return the features that an arm has: a convolutional encoder has no class token."""
    return ("mean", "cls") if hasattr(arm.encoder, "cls_token") else ("mean",)


def _flat(spreads: dict[str, dict[FrozenFeature, Spread]]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, by_feature in spreads.items():
        suffix = suffix_of(name)
        for which, spread in by_feature.items():
            for quantity, value in spread.numbers.items():
                numbers[f"{quantity}{_FEATURES[which]}{suffix}"] = value
    return numbers


def _held_out_loss(
    params: Params, pretrained: Path, images: LabelledSplit, place: Place
) -> float | None:
    """Return the loss of the method that was pretrained, or None for an encoder alone."""
    if not (pretrained / "autoencoder.safetensors").is_file():
        return None
    artifact = load_autoencoder(pretrained)
    model = artifact.autoencoder.to(place.device)
    batches = images.batches(model.params, params.runtime.workers)
    return masked_loss_over(batches, model, artifact.statistics, place.device)


def _drift(
    params: Params,
    artifact: EncoderArtifact,
    images: LabelledSplit,
    now: dict[FrozenFeature, Tensor],
    place: Place,
) -> list[dict[str, Any]]:
    """Return how alike the features are to those of the run's earlier checkpoints still kept."""
    training = artifact.info["training"]
    if not {"precision", "data_fingerprint"} <= training.keys():  # imported
        return []
    identity = run_identity(params, training["precision"], training["data_fingerprint"])
    drift = []
    for step, earlier in earlier_encoders(RUNS / identity, artifact).items():
        arm = frozen_arm(f"step {step}", earlier)
        then = {which: features_of(arm, images, which, params, place) for which in now}
        cka = {f"cka{_FEATURES[which]}": linear_cka(now[which], then[which]) for which in now}
        drift.append({"step": step, **cka})
    return drift


def _remarks(
    spreads: dict[str, dict[FrozenFeature, Spread]],
    images: LabelledSplit,
    loss: float | None,
    collapse: float,
) -> list[str]:
    """Return what a reader must know of the numbers; alarms are in the log too."""
    remarks = []
    for which, spread in spreads["pretrained"].items():
        if spread.has_collapsed:
            alarm = _alarm(which, spread, collapse)
            LOG.warning("%s", alarm)
            remarks.append(alarm)
    if images.name == "train":
        remarks.append(
            "There are neither val nor test images, so all was measured on training images: the "
            "loss looks better than it is (data.splits holds some back)."
        )
    if len(images) <= spreads["pretrained"]["mean"].width:
        remarks.append(
            f"The {len(images)} images are no more than the features have numbers, so ranks are "
            "bounded by the images."
        )
    if loss is None:
        remarks.append(
            "The encoder came without its decoder, so there is no reconstruction loss to measure."
        )
    return remarks


def _alarm(which: FrozenFeature, spread: Spread, collapse: float) -> str:
    rank = spread.numbers["effective_rank"]
    if rank == 0:
        return f"The {which} feature is the same for every image: the encoder has collapsed."
    return (
        f"The {which} feature varies in {rank:.1f} of {spread.width} directions, below the share "
        f"of {collapse:g} that evaluate.quality.collapse sets: the encoder has collapsed, or has "
        "hardly learned."
    )
