"""The masked autoencoder (MAE, arXiv 2111.06377, section 3)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mae.hashing import stream
from mae.model.decoder import Decoder
from mae.model.encoder import Architecture, Encoder
from mae.model.masking import Masking, draw_masking
from mae.model.patches import gather_patches, grid_of, patchify, unpatchify
from mae.model.targets import make_target, target_to_pixels
from mae.params import DecoderParams, MaskParams, ModelParams


class Prediction(NamedTuple):
    """prediction and target float32 (N, M, P) at the hidden patches, and where those are."""

    prediction: Tensor
    target: Tensor
    masking: Masking


class Autoencoder(nn.Module):
    """Normalised images (N, C, H, W) with their ids -> Prediction for the hidden patches."""

    def __init__(self, params: ModelParams, channels: int) -> None:
        super().__init__()
        self.params = params
        self.encoder = Encoder(Architecture.from_params(params, channels))
        architecture = self.encoder.architecture
        pixels = channels * architecture.patch[0] * architecture.patch[1]
        self.decoder = Decoder(params.decoder, params.dim, pixels, architecture.grid)

    def forward(self, images: Tensor, ids: Tensor, seed: int, epoch: int) -> Prediction:
        patch = self.encoder.architecture.patch
        grid = grid_of(images, patch)
        masking = draw_masking(self.params.mask, seed, epoch, ids, grid[0] * grid[1])
        tokens = self.encoder.encode(images, masking.keep)
        prediction = self.decoder(tokens, masking, grid).float()
        hidden = gather_patches(patchify(images, patch), masking.hidden)
        return Prediction(prediction, make_target(hidden, self.params.target), masking)

    @torch.no_grad()
    def reconstruct(
        self, images: Tensor, ids: Tensor, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Return (reconstruction, mask): pixels (N, C, H, W), and bool (N, 1, H, W), True = hidden.

        Visible patches are the image's own. With normalised targets the hidden patches get the
        true mean and deviation of their pixels, which the network was never asked to predict.
        """
        patch = self.encoder.architecture.patch
        grid = grid_of(images, patch)
        prediction, _, masking = self(images, ids, seed, epoch)
        patches = patchify(images, patch).float()
        truth = gather_patches(patches, masking.hidden)
        pixels = target_to_pixels(prediction, truth, self.params.target)
        index = masking.hidden[:, :, None].expand(-1, -1, patches.shape[2])
        mask = masking.as_mask()[:, :, None].expand(-1, -1, patch[0] * patch[1])
        reconstruction = unpatchify(patches.scatter(1, index, pixels), patch, grid)
        return reconstruction, unpatchify(mask, patch, grid)

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` needs to build the same modules."""
        return {
            "encoder": self.encoder.architecture.to_dict(),
            "decoder": self.params.decoder.model_dump(),
            "mask": self.params.mask.model_dump(),
            "target": self.params.target,
            "resize": self.params.resize,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Autoencoder":
        encoder = Architecture.from_dict(content["encoder"])
        params = ModelParams(
            height=encoder.height,
            width=encoder.width,
            resize=content["resize"],
            patch=encoder.patch,
            dim=encoder.dim,
            depth=encoder.depth,
            heads=encoder.heads,
            mlp_ratio=encoder.mlp_ratio,
            decoder=DecoderParams(**content["decoder"]),
            mask=MaskParams(**content["mask"]),
            target=content["target"],
        )
        return cls(params, encoder.channels)


def build_autoencoder(params: ModelParams, channels: int, seed: int) -> Autoencoder:
    """Return an autoencoder whose initial weights are a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "init") >> 1)
        return Autoencoder(params, channels)


def masked_loss(outcome: Prediction) -> Tensor:
    """Return the mean squared error over the hidden patches: a float32 scalar.

    A mean over patches and pixels, so neither mask ratio nor batch changes its scale.
    """
    return (outcome.prediction - outcome.target).square().mean()
