"""What is put on an encoder to solve a task."""

import torch
from torch import Tensor, nn

from mae.hashing import stream
from mae.model.encoder import Encoder
from mae.params import Feature


class Classifier(nn.Module):
    """Normalised images (N, C, H, W) -> logits (N, classes) of a linear layer on one feature.

    The layer's weights start as a truncated normal of standard deviation `init_std` that is a
    function of the seed, its biases at zero.
    """

    def __init__(
        self, encoder: Encoder, classes: int, feature: Feature, *, init_std: float, seed: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.feature = feature
        self.head = nn.Linear(encoder.dim, classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(seed, "classifier head") >> 1)
            nn.init.trunc_normal_(self.head.weight, std=init_std)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(getattr(self.encoder(images), self.feature))
