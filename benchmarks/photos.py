"""Images with the statistics of photographs: for benchmarks that must run without any data."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def photo(seed: int, height: int, width: int, grain: float = 9.0) -> NDArray[np.uint8]:
    """Return colour pixels (height, width, 3): spectra near 1 / f, hard edges and sensor noise.

    A JPEG of 500 x 375 at quality 95 has about the 110 kB of ImageNet's, one of 256 pixels and
    quality 90 about 30 kB.
    """
    random = np.random.default_rng(seed)
    luma = 128 + 55 * _field(random, height, width, 1.5)
    luma += grain * random.normal(size=luma.shape)
    planes = [luma + 18 * _field(random, height, width, 1.9) for _ in range(3)]
    image = np.stack(planes, axis=2)
    for _ in range(12):
        top, left = random.integers(0, height), random.integers(0, width)
        tall, wide = random.integers(height // 20, height // 3, 2)
        image[top : top + tall, left : left + wide] += random.normal(0, 40, 3)
    return np.clip(image, 0, 255).astype(np.uint8)


def _field(
    random: np.random.Generator, height: int, width: int, power: float
) -> NDArray[np.float64]:
    """Return noise with the spectrum 1 / f^power, of mean 0 and deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    phases = random.normal(size=frequency.shape) + 1j * random.normal(size=frequency.shape)
    field = np.fft.irfft2(phases / frequency**power, (height, width))
    return (field - field.mean()) / field.std()


def encoded(pixels: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def shortened(content: bytes, short_side: int) -> NDArray[np.uint8]:
    """Return an encoded image's pixels, shrunk until its shorter side has `short_side`."""
    with Image.open(io.BytesIO(content)) as image:
        scale = short_side / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
