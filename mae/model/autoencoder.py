"""The masked autoencoder (MAE, arXiv 2111.06377, section 3)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mae.hashing import stream
from mae.model.decoder import Decoder, LinearHead
from mae.model.encoder import Architecture, Encoder
from mae.model.losses import Loss, SquaredLoss, patch_weights
from mae.model.masking import Masking, draw_masking
from mae.model.noise import add_noise
from mae.model.patches import Size, gather_patches, place_patches, unpatchify, valid_patches
from mae.model.targets import build_target
from mae.params import ModelParams

_SQUARED = SquaredLoss()


class Prediction(NamedTuple):
    """What was predicted, of which patches, and what was wanted.

    prediction float32 (N, M, dim), at the patches `places` int64 (N, M): the hidden ones, or all.
    target float32 (N, M, dim), or codes int64 (N, M). weights float32 (N, M): how much each
    counts; None: all alike. patches float32 (N, L, P): the true ones, on the patch grid `grid`.
    """

    prediction: Tensor
    target: Tensor
    masking: Masking
    places: Tensor
    weights: Tensor | None
    patches: Tensor
    grid: Size


class Autoencoder(nn.Module):
    """Normalised images (N, C, H, W) with their ids -> Prediction for the hidden patches.

    fitted: what `fit_target` found in the data, for targets that need it.
    """

    def __init__(
        self, params: ModelParams, channels: int, fitted: dict[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.params = params
        self.encoder = Encoder(Architecture.from_params(params, channels), params.drop_path)
        self.encoder.checkpointing = params.checkpointing
        a = self.encoder.architecture
        self.target = build_target(params.target, a.patch_values, fitted)
        outputs, everywhere = self.target.dim, params.loss.over != "hidden"
        self.decoder: Decoder | LinearHead
        if params.decoder.depth:
            self.decoder = Decoder(params.decoder, a.dim, outputs, a.grid, everywhere)
        else:
            self.decoder = LinearHead(a.dim, outputs, everywhere)
        self.mask_token: Tensor | None = None
        if params.decoder.mask_tokens == "encoder":
            self.mask_token = nn.Parameter(torch.empty(1, 1, a.dim))
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        seed: int,
        epoch: int,
        ratio: float | None = None,
        valid: Tensor | None = None,
    ) -> Prediction:
        """ratio: in place of params.mask's last. valid bool (N, H, W): pixels that hold data."""
        patches, grid = self.encoder.cut(images)
        holding = self._valid(images, valid)
        masking = draw_masking(self.params.mask, seed, epoch, ids, grid, ratio, holding)
        seen = self._seen(images, patches, ids, seed, epoch)
        tokens = self.encoder.embed(gather_patches(seen, masking.keep), grid, masking.keep)
        encoded = self._encode(tokens, masking, grid)
        positions = self.encoder.positions_for(grid)
        prediction = self.decoder(encoded, masking, grid, positions).float()
        places = masking.order if self.decoder.everywhere else masking.hidden
        target = self.target(gather_patches(patches, places))
        weights = self._weights(masking, places)
        return Prediction(prediction, target, masking, places, weights, patches.float(), grid)

    def images_of(self, outcome: Prediction, patches: Tensor) -> Tensor:
        """Return patches (N, L, P) as images (N, C, H, W), any padding included."""
        return unpatchify(patches, self.encoder.architecture.patch, outcome.grid)

    def filled(self, outcome: Prediction) -> Tensor:
        """Return the images' patches (N, L, P) with the predicted ones, as pixels, in place.

        What does not count (no data) stays as it is.
        """
        truth = gather_patches(outcome.patches, outcome.places)
        pixels = self.target.to_pixels(outcome.prediction, truth)
        if outcome.weights is not None:
            pixels = torch.where(outcome.weights[:, :, None] > 0, pixels, truth)
        return place_patches(outcome.patches, outcome.places, pixels)

    def loss(self, outcome: Prediction, loss: Loss) -> Tensor:
        """Return the mean of `loss` over what counts, a float32 scalar."""
        if not loss.on_images:
            return masked_loss(outcome, loss)
        return loss.mean(*self._whole_images(outcome))

    def image_losses(self, outcome: Prediction, loss: Loss) -> Tensor:
        """Return the same for each image alone, float32 (N,); 0 where nothing counts."""
        if loss.on_images:
            return loss(*self._whole_images(outcome))
        losses = loss(outcome.prediction, outcome.target)
        weights = torch.ones_like(losses) if outcome.weights is None else outcome.weights
        return (losses * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-6)

    @torch.no_grad()
    def reconstruct(
        self,
        images: Tensor,
        ids: Tensor,
        seed: int,
        epoch: int,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (reconstruction, mask): pixels (N, C, H, W), and bool (N, 1, H, W), True = hidden.

        Patches that the loss does not ask for are the image's own. With normalised targets the
        others get the true mean and deviation of their pixels, which the network was never asked
        to predict.
        """
        height, width = images.shape[-2:]
        outcome = self(images, ids, seed, epoch, valid=valid)
        patch = self.encoder.architecture.patch
        mask = outcome.masking.as_mask()[:, :, None].expand(-1, -1, patch[0] * patch[1])
        pictures = (self.images_of(outcome, part) for part in (self.filled(outcome), mask))
        reconstruction, hidden = (picture[..., :height, :width] for picture in pictures)
        return reconstruction, hidden

    def _whole_images(self, outcome: Prediction) -> tuple[Tensor, Tensor, Tensor]:
        """Return the filled images, the true ones, and how much each pixel counts (N, 1, H, W)."""
        weights = outcome.weights
        if weights is None:
            weights = torch.ones_like(outcome.places, dtype=torch.float32)
        everywhere = weights.new_zeros(outcome.patches.shape[:2])
        everywhere = everywhere.scatter(1, outcome.places, weights)
        patch = self.encoder.architecture.patch
        pixels = everywhere[:, :, None].expand(-1, -1, patch[0] * patch[1])
        parts = (self.filled(outcome), outcome.patches, pixels)
        filled, true, counts = (self.images_of(outcome, part) for part in parts)
        return filled, true, counts

    def _valid(self, images: Tensor, valid: Tensor | None) -> Tensor | None:
        """Return the patches with data all over, bool (N, L), or None where all have."""
        patch = self.encoder.architecture.patch
        height, width = images.shape[-2:]
        if valid is None and (height % patch[0] or width % patch[1]):
            valid = torch.ones_like(images[:, 0], dtype=torch.bool)
        return None if valid is None else valid_patches(valid, patch)

    def _seen(self, images: Tensor, patches: Tensor, ids: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the patches (N, L, P) that the encoder is given: noisy ones, if to be denoised."""
        if self.params.method != "denoising":
            return patches
        return self.encoder.cut(add_noise(images, ids, seed, epoch, self.params.noise))[0]

    def _encode(self, tokens: Tensor, masking: Masking, grid: Size) -> Tensor:
        """Encode embedded visible patches (N, K, D), with mask tokens for the others if wanted."""
        if self.mask_token is None:
            return self.encoder.transform(tokens, masking.shown)
        hidden = self.mask_token + self.encoder.positions_at(grid, masking.hidden)
        return self.encoder.transform(torch.cat([tokens, hidden], dim=1), masking.valid)

    def _weights(self, masking: Masking, places: Tensor) -> Tensor | None:
        if masking.valid is None and self.params.loss.over != "discounted":
            return None
        hidden = torch.ones_like(places, dtype=torch.bool)
        hidden[:, : places.shape[1] - masking.hidden.shape[1]] = False
        valid = masking.valid
        if valid is not None:
            valid = valid[:, valid.shape[1] - places.shape[1] :]
        return patch_weights(self.params.loss, hidden, valid)

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` needs to build the same modules."""
        return {
            "encoder": self.encoder.architecture.to_dict(),
            "params": self.params.model_dump(mode="json"),
            "resize": self.params.resize,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Autoencoder":
        return cls(ModelParams(**content["params"]), content["encoder"]["channels"])


def build_autoencoder(
    params: ModelParams, channels: int, seed: int, fitted: dict[str, Tensor] | None = None
) -> Autoencoder:
    """Return an autoencoder whose initial weights are a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "init") >> 1)
        return Autoencoder(params, channels, fitted)


def masked_loss(outcome: Prediction, loss: Loss = _SQUARED) -> Tensor:
    """Return the mean loss of the patches that count: a float32 scalar.

    Neither mask ratio nor batch changes its scale.
    """
    return loss.mean(outcome.prediction, outcome.target, outcome.weights)
