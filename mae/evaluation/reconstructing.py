"""How well a pretrained model guesses what it was not shown, in numbers that need no labels."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mae.model.autoencoder import Autoencoder, Prediction
from mae.model.convolutional import ConvolutionalAutoencoder
from mae.model.encoder import Features
from mae.model.methods import PretrainingModel
from mae.model.patches import gather_patches, patchify

_LEAST = 1e-6  # length of a vector that has a direction


class Sums(NamedTuple):
    """Weighted sums over patches, and their weights, to be added up over batches.

    error float64 (C,): squared error of each channel, in the data's variance, so that a guess of
    the mean image costs 1 on average. similarity, alike, view: see `measure`.
    """

    error: Tensor
    patches: Tensor
    similarity: Tensor
    alike: Tensor
    view: Tensor
    visible: Tensor

    def plus(self, other: "Sums") -> "Sums":
        return Sums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def numbers(self, most_channels: int) -> dict[str, float]:
        """Return the means; what was measured on nothing is left out."""
        found: dict[str, float] = {}
        if self.patches > 0 and len(self.error) <= most_channels:
            for channel, value in enumerate((self.error / self.patches).tolist()):
                found[f"error_channel_{channel}"] = value
        if self.alike > 0:
            found["patch_similarity"] = float(self.similarity / self.alike)
        if self.visible > 0:
            found["view_similarity"] = float(self.view / self.visible)
        return found


def measure(
    model: PretrainingModel, images: Tensor, ids: Tensor, valid: Tensor | None, features: Features
) -> Sums | None:
    """Return the sums over normalised images (N, C, H, W), under masks that their ids decide.

    features: the encoder's of the whole images. None for a model that predicts no pixels.

    - error: of the hidden patches, or of all where nothing is hidden.
    - similarity: the cosine of what was predicted of such a patch and what was asked for; of
      codes, whether they are the same.
    - view: the cosine of a visible patch's feature when only the visible patches are seen, and
      when the whole image is.
    """
    if isinstance(model, ConvolutionalAutoencoder):
        patch = model.encoder.architecture.patch
        predicted, truth = patchify(model(images).float(), patch), patchify(images, patch)
        counts = torch.ones_like(truth[..., 0])
        return _sums(predicted, truth, _cosine(predicted, truth), counts, images.shape[1])
    if not isinstance(model, Autoencoder):
        return None
    outcome = model(images, ids, 0, 0, valid=valid)
    asked = outcome.masking.hidden.shape[1] or outcome.places.shape[1]
    prediction, target = outcome.prediction[:, -asked:], outcome.target[:, -asked:]
    truth = gather_patches(outcome.patches, outcome.places[:, -asked:])
    holding = outcome.masking.valid
    counts = torch.ones_like(truth[..., 0]) if holding is None else holding[:, -asked:].float()
    if model.target.discrete:
        similarity = (prediction.argmax(dim=-1) == target).float(), torch.ones_like(counts)
    else:
        similarity = _cosine(prediction, target)
    pixels = model.target.to_pixels(prediction, truth)
    sums = _sums(pixels, truth, similarity, counts, images.shape[1])
    if not outcome.masking.hidden.shape[1]:
        return sums
    view, shown = _view(model, images, outcome, features)
    return sums._replace(view=(view * shown).sum().double(), visible=shown.sum().double())


def _sums(
    pixels: Tensor, truth: Tensor, similarity: tuple[Tensor, Tensor], counts: Tensor, channels: int
) -> Sums:
    """pixels, truth (N, M, P); similarity: of each patch and whether it has one; counts (N, M)."""
    error = (pixels - truth).square().unflatten(2, (channels, -1)).mean(dim=3)
    cosine, defined = similarity
    nothing = torch.zeros((), dtype=torch.float64, device=truth.device)
    return Sums(
        error=(error * counts[..., None]).sum(dim=(0, 1)).double(),
        patches=counts.sum().double(),
        similarity=(cosine * defined * counts).sum().double(),
        alike=(defined * counts).sum().double(),
        view=nothing,
        visible=nothing,
    )


def _view(
    model: Autoencoder, images: Tensor, outcome: Prediction, features: Features
) -> tuple[Tensor, Tensor]:
    """Return the similarity (N, K) of each visible patch in the two views, and which count."""
    encoder, keep, shown = model.encoder, outcome.masking.keep, outcome.masking.shown
    patches, grid = encoder.cut(images)
    tokens = encoder.embed(gather_patches(patches, keep), grid, keep)
    alone = encoder.transform(tokens, shown)[:, 1:]
    assert features.patches is not None
    within = gather_patches(features.patches.flatten(2).mT, keep)
    similarity = F.cosine_similarity(alone.float(), within.float(), dim=2)
    counts = torch.ones_like(similarity) if shown is None else shown.float()
    return similarity, counts


def _cosine(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines (N, M) of (N, M, P), and 1 where `b` has a direction, else 0."""
    return F.cosine_similarity(a, b, dim=2), (b.norm(dim=2) > _LEAST).float()
