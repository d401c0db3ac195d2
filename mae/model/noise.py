"""Noise on the pixels: a pure function of (seed, epoch, sample id)."""

import math

import torch
from torch import Tensor

from mae.hashing import uniform


def add_noise(images: Tensor, ids: Tensor, seed: int, epoch: int, strength: float) -> Tensor:
    """Return images (N, C, H, W) plus Gaussian noise of standard deviation `strength`.

    The noise of an image depends neither on the others in the batch nor, but for the last bits of
    a logarithm and a cosine, on the device.
    """
    values = images[0].numel()
    half = -(-values // 2)
    draws = uniform(seed, "noise", epoch, ids, 2 * half)
    # Box and Muller: two uniform draws make two independent Gaussian ones.
    radius = (-2 * torch.log1p(-draws[:, :half])).sqrt()
    angle = 2 * math.pi * draws[:, half:]
    noise = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :values]
    return images + strength * noise.reshape(images.shape).to(images.dtype)
