"""A plain convolutional autoencoder, as lecture notes draw it: the baseline without attention.

Three convolutions of stride 2 lead to a code an eighth as high and wide, three transposed ones
back. Nothing is masked; all pixels are predicted. Its encoder gives the same Features as the
vision transformer's, so whatever measures one measures the other.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mae.errors import ParamsError
from mae.hashing import stream
from mae.model.encoder import Features
from mae.model.losses import Loss
from mae.model.patches import Size, patchify
from mae.params import ModelParams

KIND = "convolutional"
_STRIDE = 8  # pixels of height and of width for each cell of the code


@dataclass(frozen=True)
class ConvolutionalArchitecture:
    """Everything that decides the shapes of the weights and the usual input.

    dim: the channels of the code; the layers before it have a quarter and half as many.
    """

    channels: int
    height: int
    width: int
    dim: int

    @property
    def patch(self) -> Size:
        """The pixels (height, width) of a cell of the code."""
        return _STRIDE, _STRIDE

    @property
    def grid(self) -> Size:
        """The cells (Hp, Wp) of the code of the usual input."""
        return self.height // _STRIDE, self.width // _STRIDE

    @property
    def widths(self) -> tuple[int, int, int]:
        """The channels after each convolution."""
        return max(1, self.dim // 4), max(1, self.dim // 2), self.dim

    def to_dict(self) -> dict[str, Any]:
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ConvolutionalArchitecture":
        return cls(**{name: value for name, value in content.items() if name != "kind"})


class ConvolutionalEncoder(nn.Module):
    """Images (N, C, H, W), normalised, H and W multiples of 8 -> Features on an H/8 x W/8 grid.

    There is no class token: cls is the mean.
    """

    def __init__(self, architecture: ConvolutionalArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.dim = architecture.dim
        ins = (architecture.channels, *architecture.widths[:-1])
        self.blocks = nn.ModuleList(
            _halving(before, after) for before, after in zip(ins, architecture.widths, strict=True)
        )

    def forward(self, images: Tensor) -> Features:
        patches = self.encode(images)
        mean = patches.mean(dim=(2, 3))
        return Features(mean, mean, patches)

    def encode(self, images: Tensor) -> Tensor:
        """Return the code (N, D, H/8, W/8)."""
        self._check(images)
        for block in self.blocks:
            images = block(images)
        return images

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each layer, from the input on: for layer-wise decay."""
        return [list(block.parameters()) for block in self.blocks]

    def set_drop_path(self, rate: float) -> None:
        """Do nothing: without residual branches there is no path to drop."""

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.architecture.channels:
            raise ValueError(
                f"the encoder takes images (N, {self.architecture.channels}, H, W) "
                f"and was given {tuple(images.shape)}"
            )
        _check_sides(*images.shape[-2:])


class ConvolutionalAutoencoder(nn.Module):
    """Normalised images (N, C, H, W) -> reconstructions of the same shape."""

    def __init__(self, params: ModelParams, channels: int) -> None:
        super().__init__()
        _check_sides(params.height, params.width)
        self.params = params
        architecture = ConvolutionalArchitecture(channels, params.height, params.width, params.dim)
        self.encoder = ConvolutionalEncoder(architecture)
        quarter, half, full = architecture.widths
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(full, half, kernel_size=4, stride=2, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, kernel_size=4, stride=2, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(quarter, architecture.channels, kernel_size=4, stride=2, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder.encode(images))

    def loss(self, images: Tensor, loss: Loss) -> Tensor:
        """Return the mean of `loss` over all pixels, a float32 scalar; patches are 8 x 8 cells."""
        prediction = self(images)
        if loss.on_images:
            return loss.mean(prediction, images)
        patch = self.encoder.architecture.patch
        return loss.mean(patchify(prediction, patch), patchify(images, patch))

    @torch.no_grad()
    def reconstruct(
        self, images: Tensor, ids: Tensor, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Return (reconstruction (N, C, H, W), mask bool (N, 1, H, W)): nothing is hidden."""
        mask = torch.zeros_like(images[:, :1], dtype=torch.bool)
        return self(images).float(), mask

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` needs to build the same modules."""
        return {
            "encoder": self.encoder.architecture.to_dict(),
            "params": self.params.model_dump(mode="json"),
            "resize": self.params.resize,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ConvolutionalAutoencoder":
        return cls(ModelParams(**content["params"]), content["encoder"]["channels"])


def build_convolutional(params: ModelParams, channels: int, seed: int) -> ConvolutionalAutoencoder:
    """Return one with `params.dim` channels in its code and weights that the seed decides.

    Raises ParamsError for sides that are not multiples of 8.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "init") >> 1)
        return ConvolutionalAutoencoder(params, channels)


def _halving(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1),
        nn.GELU(),
    )


def _check_sides(height: int, width: int) -> None:
    if height % _STRIDE or width % _STRIDE:
        raise ParamsError(
            f"method convolutional needs height and width that are multiples of {_STRIDE}, "
            f"and they are {height} x {width}"
        )
