"""What the decoder is asked for at the hidden patches, and back from it to pixels."""

from typing import Literal

from torch import Tensor

Target = Literal["pixels", "normalized_pixels"]

_EPS = 1e-6


def make_target(patches: Tensor, target: Target) -> Tensor:
    """Patches (N, M, P) of normalised pixels -> float32 targets (N, M, P).

    `normalized_pixels` subtracts each patch's mean and divides by its unbiased standard
    deviation (MAE, section 3, "reconstruction target").
    """
    patches = patches.float()
    if target == "pixels":
        return patches
    mean, std = _patch_statistics(patches)
    return (patches - mean) / std


def target_to_pixels(prediction: Tensor, patches: Tensor, target: Target) -> Tensor:
    """Return predictions (N, M, P) as pixels; normalised ones use the true patches' statistics."""
    if target == "pixels":
        return prediction.float()
    mean, std = _patch_statistics(patches.float())
    return prediction.float() * std + mean


def _patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + _EPS).sqrt()
