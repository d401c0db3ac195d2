"""What is predicted of a patch (MAE, arXiv 2111.06377, section 3 and table 1d), and back to pixels.

A Target turns the true patches of an image into what the network is asked for, and a prediction
into pixels to look at. PCA and tokens are fitted to the data first (mae/model/fitting.py); what
was fitted is saved with the weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mae.errors import CheckpointError, ParamsError
from mae.params import TargetParams

_EPS = 1e-6


class Target(nn.Module):
    """Patches (N, M, P) of normalised pixels -> float32 (N, M, dim), or codes int64 (N, M).

    dim: the numbers predicted per patch. discrete: they are logits of codes. needs_truth: coming
    back to pixels takes something of the true patch that the network was never asked for.
    """

    discrete = False
    needs_truth = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        with _full_precision(patches):
            return self.of_patches(patches.float())

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """Return predictions (N, M, dim) as pixels, float32 (N, M, P); `patches` are the true."""
        with _full_precision(prediction):
            return self.pixels_of(prediction.float(), patches.float())

    def of_patches(self, patches: Tensor) -> Tensor:
        raise NotImplementedError

    def pixels_of(self, prediction: Tensor, patches: Tensor) -> Tensor:
        raise NotImplementedError


class Pixels(Target):
    """The pixels themselves."""

    def of_patches(self, patches: Tensor) -> Tensor:
        return patches

    def pixels_of(self, prediction: Tensor, patches: Tensor) -> Tensor:
        return prediction


class NormalizedPixels(Target):
    """Each patch less its mean, divided by its unbiased standard deviation."""

    needs_truth = True

    def of_patches(self, patches: Tensor) -> Tensor:
        mean, std = _patch_statistics(patches)
        return (patches - mean) / std

    def pixels_of(self, prediction: Tensor, patches: Tensor) -> Tensor:
        mean, std = _patch_statistics(patches)
        return prediction * std + mean


class FittedTarget(Target):
    """A target with buffers that are fitted to data, or loaded; of no use before that."""

    def __init__(
        self, dim: int, shapes: dict[str, tuple[int, ...]], fitted: dict[str, Tensor] | None
    ) -> None:
        super().__init__(dim)
        self.fitted = False
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_load_state_dict_post_hook(_note_fitted)
        if fitted is not None:
            self._load(fitted)

    def forward(self, patches: Tensor) -> Tensor:
        if not self.fitted:
            raise CheckpointError(
                f"the {type(self).__name__} target has been neither fitted nor loaded: fit it to "
                "the training data first (the pretrain stage does)"
            )
        return super().forward(patches)

    def _load(self, fitted: dict[str, Tensor]) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in fitted.items()}
        expected = {name: tuple(buffer.shape) for name, buffer in self.named_buffers()}
        if shapes != expected:
            raise CheckpointError(
                f"what was fitted for the {type(self).__name__} target has shapes {shapes} "
                f"instead of {expected}: fit it again with these parameters"
            )
        self.load_state_dict(fitted)


class PrincipalComponents(FittedTarget):
    """The first coefficients of a patch in the principal components of all patches.

    One common factor brings their variance to 1 on average and keeps the components' proportions,
    so a squared error weighs them as pixels would: the first count most. Predicting the mean patch
    costs 1, as with normalised pixels.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, values: int, dim: int, fitted: dict[str, Tensor] | None) -> None:
        super().__init__(dim, {"mean": (values,), "basis": (values, dim), "scale": ()}, fitted)

    def of_patches(self, patches: Tensor) -> Tensor:
        return (patches - self.mean) @ self.basis / self.scale

    def pixels_of(self, prediction: Tensor, patches: Tensor) -> Tensor:
        return prediction * self.scale @ self.basis.mT + self.mean


class Tokens(FittedTarget):
    """The index of the nearest code, by Euclidean distance; the first of equally near ones."""

    discrete = True
    codebook: Tensor

    def __init__(self, values: int, codes: int, fitted: dict[str, Tensor] | None) -> None:
        super().__init__(codes, {"codebook": (codes, values)}, fitted)

    def of_patches(self, patches: Tensor) -> Tensor:
        return nearest_codes(patches, self.codebook)

    def pixels_of(self, prediction: Tensor, patches: Tensor) -> Tensor:
        return self.codebook[prediction.argmax(dim=-1)]


def nearest_codes(patches: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the code (codes, P) nearest to each of patches (..., P): int64 (...).

    Both are moved by the codes' mean first, so that large common values do not eat the digits.
    """
    centre = codebook.mean(dim=0)
    codes = codebook - centre
    distances = codes.square().sum(dim=1) - 2 * (patches - centre) @ codes.mT
    return distances.argmin(dim=-1)


def build_target(
    target: TargetParams, values: int, fitted: dict[str, Tensor] | None = None
) -> Target:
    """Return the target for patches of `values` numbers, with what `fit_target` returned.

    Without `fitted`, a PCA or codebook waits for its state dict. Raises ParamsError for more
    components than a patch has values, CheckpointError for ill-shaped `fitted`.
    """
    if target.kind == "pixels":
        return Pixels(values)
    if target.kind == "normalized_pixels":
        if values == 1:
            raise ParamsError(
                "target.kind normalized_pixels leaves nothing of a patch of one value: "
                "use pixels, or a larger patch"
            )
        return NormalizedPixels(values)
    if target.kind == "pca":
        check_components(target.components, values)
        return PrincipalComponents(values, target.components, fitted)
    return Tokens(values, target.codes, fitted)


def check_components(components: int, values: int) -> None:
    """Raise ParamsError for more principal components than a patch of `values` numbers has."""
    if components > values:
        raise ParamsError(
            f"target.components {components} exceeds the {values} values of a patch "
            "(channels x height x width): choose fewer"
        )


def _patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + _EPS).sqrt()


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Matrix products inside are those of float32, whatever autocast rules outside."""
    return torch.autocast(tensor.device.type, enabled=False)


def _note_fitted(target: nn.Module, incompatible: Any) -> None:
    assert isinstance(target, FittedTarget)
    target.fitted = True
