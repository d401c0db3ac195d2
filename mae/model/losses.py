"""How far a prediction is from its target, in float32 whatever autocast rules around it.

Every loss is a mean over the values of a patch, over the patches of an image that count, and over
the images, so neither mask ratio, patch, channels nor batch changes its scale.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae.errors import ParamsError
from mae.model.perceptual import PerceptualNetwork, load_network
from mae.params import LossParams, TargetParams


class Loss(nn.Module):
    """prediction (N, M, dim) and target -> float32 (N, M), the loss of each patch.

    target: float (N, M, dim), or codes int64 (N, M) for the cross-entropy. on_images: the loss
    takes whole images instead of patches (see PerceptualLoss).
    """

    on_images = False

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self._float32(prediction, target).flatten(start_dim=2).mean(dim=2)

    def mean(self, prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the float32 scalar mean over patches and images; see weighted_mean for weights
        (N, M)."""
        if weights is None:
            return self._float32(prediction, target).mean()
        return weighted_mean(self(prediction, target), weights)

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each value of each patch: (N, M, ...), not yet averaged."""
        raise NotImplementedError

    def _float32(self, prediction: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(prediction.device.type, enabled=False):
            return self.values(prediction.float(), target)


class SquaredLoss(Loss):
    """The squared difference."""

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target.float()).square()


class AbsoluteLoss(Loss):
    """The absolute difference (L1)."""

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target.float()).abs()


class CharbonnierLoss(Loss):
    """sqrt(difference^2 + epsilon^2): L1 with a rounded foot, itself never below epsilon."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        return ((prediction - target.float()).square() + self.epsilon**2).sqrt()


class FrequencyLoss(Loss):
    """The squared difference of the patches' 2-D spectra, channel by channel, by frequency.

    The weight of a frequency is (1 + radius)^alpha over the mean of all, the radius in cycles per
    patch. The transform is orthonormal: alpha 0 is the squared difference of the pixels.
    """

    weights: Tensor

    def __init__(self, alpha: float, channels: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.shape = (channels, *patch)
        self.register_buffer("weights", frequency_weights(alpha, patch), persistent=False)

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        residual = (prediction - target.float()).unflatten(-1, self.shape)
        spectrum = torch.view_as_real(torch.fft.fft2(residual, norm="ortho"))
        return spectrum.square().sum(dim=-1) * self.weights


class CrossEntropy(Loss):
    """Logits (N, M, codes) against codes int64 (N, M), in nats: log(codes) knows nothing."""

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(prediction.flatten(0, 1), target.flatten(), reduction="none")
        return losses.unflatten(0, target.shape)[..., None]


class PerceptualLoss(Loss):
    """Whole images (N, C, H, W) against each other, as a trained network sees them: (N,).

    At each of the network's maps the features of a position are brought to length 1 and their
    squared distance is taken (as in LPIPS, arXiv 1801.03924, unweighted); positions are averaged
    by how much their pixels count, maps equally. The images are normalised by the data's own
    statistics, channel by channel, which is the range the network was trained on; a single
    channel is shown to it as grey.
    """

    on_images = True

    def __init__(self, network: PerceptualNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """`weights` (N, 1, H, W): how much each pixel counts, as patches do for other losses."""
        with torch.autocast(prediction.device.type, enabled=False):
            seen, wanted = (_as_color(images.float()) for images in (prediction, target))
            if weights is None:
                weights = torch.ones_like(seen[:, :1])
            maps = zip(self.network(seen), self.network(wanted), strict=True)
            return torch.stack([_map_distance(a, b, weights) for a, b in maps]).mean(dim=0)

    def mean(self, prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the float32 scalar mean over images; one without pixels that count is a 0."""
        losses = self(prediction, target, weights)
        if weights is None:
            return losses.mean()
        return weighted_mean(losses, (weights.flatten(1).sum(dim=1) > 0).float())


def build_loss(
    loss: LossParams, target: TargetParams, channels: int, patch: tuple[int, int]
) -> Loss:
    """Return the loss for patches of `channels` x height x width. It has no parameters to learn.

    Tokens are learned by cross-entropy. Raises ParamsError for a loss that does not go with the
    target or the channels, and what `load_network` raises.
    """
    if target.kind == "tokens":
        if loss.kind != "mse":
            raise ParamsError(
                f"target.kind tokens is learned by cross-entropy, and loss.kind is {loss.kind}: "
                "leave it at mse"
            )
        return CrossEntropy()
    if loss.kind == "l1":
        return AbsoluteLoss()
    if loss.kind == "charbonnier":
        return CharbonnierLoss(loss.epsilon)
    if loss.kind == "frequency":
        _check_target(loss, target, ("pixels", "normalized_pixels"))
        return FrequencyLoss(loss.alpha, channels, patch)
    if loss.kind == "perceptual":
        _check_target(loss, target, ("pixels",))
        if channels not in (1, 3):
            raise ParamsError(
                f"loss.kind perceptual needs images of 1 or 3 channels, and these have {channels}"
            )
        return PerceptualLoss(load_network(loss.network, loss.weights))
    return SquaredLoss()


def patch_weights(loss: LossParams, hidden: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return how much each patch counts, float32 (N, L), from masks bool (N, L).

    A hidden patch counts 1; a visible one 0, 1 or loss.visible_weight as loss.over says; one that
    is not `valid` (no data) 0.
    """
    visible = {"hidden": 0.0, "all": 1.0, "discounted": loss.visible_weight}[loss.over]
    weights = torch.where(hidden, 1.0, visible)
    return weights if valid is None else weights * valid


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the scalar mean over images of each image's mean of `values`, weighted by `weights`.

    Both (N, ...). An image of which nothing counts is a 0 among the others: so the mean over
    micro-batches is that of the batch, however the data are spread over them.
    """
    weights = weights.to(values.dtype).reshape(len(weights), -1)
    # What does not count may be anything, NaN included.
    counted = torch.where(weights > 0, values.reshape(len(values), -1), 0.0) * weights
    tiny = torch.finfo(values.dtype).tiny
    return (counted.sum(dim=1) / weights.sum(dim=1).clamp(min=tiny)).mean()


def frequency_weights(alpha: float, patch: tuple[int, int]) -> Tensor:
    """Return (1 + radius)^alpha over its mean, float32 (ph, pw), in the order of torch.fft.

    The radius is the same in all directions of the image; on a patch that is not square, a cycle
    per patch is one per the root of its area.
    """
    down, across = (torch.fft.fftfreq(side, dtype=torch.float64) for side in patch)
    radius = torch.hypot(down[:, None], across[None, :]) * math.sqrt(patch[0] * patch[1])
    weights = (1 + radius) ** alpha
    return (weights / weights.mean()).float()


def _check_target(loss: LossParams, target: TargetParams, possible: tuple[str, ...]) -> None:
    if target.kind not in possible:
        raise ParamsError(
            f"loss.kind {loss.kind} compares pixels, and target.kind is {target.kind}: "
            f"use {' or '.join(possible)}"
        )


def _as_color(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _map_distance(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Squared distance of maps (N, D, h, w) with unit features, averaged by weights: (N,)."""
    distance = (_unit(a) - _unit(b)).square().sum(dim=1)
    shares = F.adaptive_avg_pool2d(weights.float(), (distance.shape[1], distance.shape[2]))[:, 0]
    total = shares.sum(dim=(1, 2)).clamp(min=torch.finfo(torch.float32).tiny)
    return (distance * shares).sum(dim=(1, 2)) / total


def _unit(features: Tensor) -> Tensor:
    """Features (N, D, h, w) of length 1 at each position; the small term keeps 0 differentiable."""
    return features / (features.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()
