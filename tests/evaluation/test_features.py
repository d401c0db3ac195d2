import dataclasses

import pytest
import torch
from torch import nn

from mae.data.dataset import read_dataset_info
from mae.errors import DataError
from mae.evaluation.arms import frozen_arms
from mae.evaluation.features import (
    Embedder,
    check_encoder_fits,
    embedding_precision,
    pixels,
    select,
)
from mae.model.artifact import load_encoder
from mae.pixels import PixelNormalizer

CPU = torch.device("cpu")


@pytest.fixture
def stored() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 1, 24, 24), generator=generator, dtype=torch.uint8)


def test_embeds_both_features_of_normalised_images(make_params, tiny_encoder, stored) -> None:
    artifact = load_encoder(tiny_encoder)
    arm = frozen_arms(make_params(), artifact, pixels=False)["pretrained"]
    vectors = Embedder(arm, CPU)(stored)
    with torch.no_grad():
        expected = artifact.encoder(PixelNormalizer(artifact.statistics)(stored))
    assert vectors.shape == (3, arm.embedded_width) and vectors.dtype == torch.float32
    assert torch.equal(select(vectors, arm, "cls"), expected.cls)
    assert torch.equal(select(vectors, arm, "mean"), expected.mean)
    assert torch.equal(
        select(vectors, arm, "both"), torch.cat([expected.cls, expected.mean], dim=1)
    )


def test_pixels_are_the_normalised_image(make_params, tiny_encoder, stored) -> None:
    artifact = load_encoder(tiny_encoder)
    arm = frozen_arms(make_params(), artifact, pixels=True)["pixels"]
    vectors = Embedder(arm, CPU)(stored)
    assert torch.equal(vectors, PixelNormalizer(artifact.statistics)(stored).flatten(1))
    assert vectors.shape[1] == arm.embedded_width == arm.dim
    assert torch.equal(select(vectors, arm, "mean"), vectors)


def test_large_pixels_are_averaged_and_small_ones_left() -> None:
    images = torch.rand(2, 3, 64, 16)
    expected = nn.functional.avg_pool2d(images, (2, 1)).flatten(1)
    torch.testing.assert_close(pixels(images), expected)


def test_features_are_exact_where_they_are_kept_for_long() -> None:
    assert embedding_precision(CPU) == "fp32"


@pytest.mark.parametrize(("channels", "bit_depth"), [(3, 8), (1, 16)])
def test_an_encoder_for_other_images_is_refused(
    digit_shards, make_encoder, channels: int, bit_depth: int
) -> None:
    artifact = load_encoder(make_encoder(channels, bit_depth))
    with pytest.raises(DataError, match=f"takes images of {channels} channels and {bit_depth}"):
        check_encoder_fits(artifact, read_dataset_info(digit_shards))


def test_an_encoder_whose_patches_do_not_fill_its_images_is_refused(
    digit_shards, tiny_encoder
) -> None:
    artifact = load_encoder(tiny_encoder)
    encoder = artifact.encoder
    encoder.architecture = dataclasses.replace(encoder.architecture, height=30)
    with pytest.raises(DataError, match="30 x 24 pixels in patches of 8 x 8"):
        check_encoder_fits(artifact, read_dataset_info(digit_shards))
