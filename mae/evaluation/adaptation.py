"""Test-time training of an encoder on single images, many images side by side (arXiv 2209.07522).

Each image gets a copy of the encoder's weights, which learns to reconstruct that image under random
masks by plain gradient descent. As in the paper's code the encoder learns, class token included;
the decoder and the mask token stay as they were pretrained.
"""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mae.data.loading.batch import Batch
from mae.hashing import random_bits
from mae.model.autoencoder import Autoencoder
from mae.model.linear import Linear
from mae.params.evaluation import TestTimeParams
from mae.pixels import PixelNormalizer, PixelStatistics
from mae.training.devices import AUTOCAST_DTYPE, resolve_precision
from mae.training.objective import Objective

Weights = dict[str, Tensor]
"""The encoder's parameters by name, float32 (n, ...): one set for each of n images."""

_ENCODER = "autoencoder.encoder."
_MEMORY = 1 << 30  # bytes that the copies of the weights may take, with all they need to learn
_MOST_AT_ONCE = 32


class Adaptation:
    """Adapts copies of an encoder; the autoencoder it is given stays as it is.

    views: the masks of an image at a step, functions of (seed, image id, step, view).
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        statistics: PixelStatistics,
        wanted: TestTimeParams,
        seed: int,
        device: torch.device,
    ) -> None:
        own = copy.deepcopy(autoencoder).to(device).eval().requires_grad_(False)
        for module in own.modules():
            # torch.func cannot see through a custom autograd function.
            if type(module) is Linear:
                module.__class__ = nn.Linear  # type: ignore[assignment]
        params = own.params
        # Where nothing is drawn all views are the same one.
        drawn = params.mask.last_ratio > 0 or params.method == "denoising"
        self.views = wanted.views if drawn else 1
        self.steps, self.lr = wanted.steps, wanted.lr
        # Without scaling of the loss fp16 loses small gradients.
        precision = resolve_precision("auto", device)
        self.precision = precision if precision == "bf16" else "fp32"
        self._seed, self._device, self._feature = seed, device, wanted.feature
        self._encoder = own.encoder
        self._normalize = PixelNormalizer(statistics).to(device)
        self._task = _Reconstruction(own, statistics, seed).to(device)

    @property
    def at_once(self) -> int:
        """How many images to adapt side by side."""
        size = sum(value.numel() * 4 for value in self._encoder.parameters())
        return max(1, min(_MOST_AT_ONCE, _MEMORY // (4 * size)))

    def pretrained(self, images: int) -> Weights:
        """Return the weights as pretrained, one set for each image."""
        return {
            name: value.detach().expand(images, *value.shape).clone()
            for name, value in self._encoder.named_parameters()
        }

    def adapt(self, weights: Weights, stored: Tensor, ids: Tensor) -> Tensor:
        """Adapt the weights in place to stored images (n, C, H, W) with ids int64 (n,).

        Returns the reconstruction loss that each step began with, float32 (steps, n).
        """
        stored, ids = stored.to(self._device), ids.to(self._device)
        losses = [self._step(weights, stored, ids, step) for step in range(self.steps)]
        return torch.stack(losses)

    @torch.no_grad()
    def features(self, weights: Weights, stored: Tensor) -> Tensor:
        """Return the feature of stored images (n, C, H, W), each by its own weights: (n, D)."""
        images = self._normalize(stored.to(self._device))

        def of_one(mine: Weights, image: Tensor) -> Tensor:
            return getattr(functional_call(self._encoder, mine, (image[None],)), self._feature)[0]

        with sdpa_kernel(SDPBackend.MATH):
            return vmap(of_one)(weights, images)

    def _step(self, weights: Weights, stored: Tensor, ids: Tensor, step: int) -> Tensor:
        # A view is a sample of its own, whose id is drawn from the image's.
        views = random_bits(self._seed, "test-time:view", step, ids, self.views)

        def loss_of(mine: Weights, image: Tensor, of_image: Tensor) -> Tensor:
            named = {f"{_ENCODER}{name}": value for name, value in mine.items()}
            return functional_call(self._task, named, (image, of_image, step))

        dtype = AUTOCAST_DTYPE[self.precision]
        # The fused kernels of attention know nothing of vmap.
        with (
            sdpa_kernel(SDPBackend.MATH),
            torch.autocast(self._device.type, dtype, enabled=dtype is not None),
        ):
            gradients, losses = vmap(grad_and_value(loss_of))(weights, stored, views)
        for name, value in weights.items():
            value.sub_(gradients[name], alpha=self.lr)
        return losses.detach()


class _Reconstruction(nn.Module):
    """One stored image (C, H, W) and the ids of its views int64 (V,) -> their mean loss."""

    def __init__(self, autoencoder: Autoencoder, statistics: PixelStatistics, seed: int) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.objective = Objective(autoencoder, statistics)
        self.seed = seed

    def forward(self, image: Tensor, views: Tensor, step: int) -> Tensor:
        batch = Batch(image.expand(len(views), -1, -1, -1), views, torch.full_like(views, -1))
        return self.objective(self.autoencoder, batch, self.seed, step)
