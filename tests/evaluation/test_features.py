import pytest
import torch
from torch import nn

from mae.data.dataset import read_dataset_info
from mae.errors import DataError
from mae.evaluation.features import (
    FeatureLoader,
    check_encoder_fits,
    extract,
    feature_of,
    pixels,
)
from mae.evaluation.labelled import labelled_split
from mae.model.artifact import load_encoder
from mae.params import OptimParams
from mae.pixels import PixelNormalizer

CPU = torch.device("cpu")


def optim(batch: int, epochs: int = 2) -> OptimParams:
    return OptimParams(
        epochs=epochs, batch=batch, blr=0.1, weight_decay=0.0, warmup_epochs=0, precision="fp32"
    )


def test_features_are_those_of_the_images_in_order(digit_shards, tiny_encoder, make_params) -> None:
    artifact = load_encoder(tiny_encoder)
    split = labelled_split(digit_shards, "test")
    extractors = {
        "cls": feature_of(artifact.encoder, "cls", CPU),
        "mean": feature_of(artifact.encoder, "mean", CPU),
        "pixels": pixels,
    }
    found = extract(split, artifact, extractors, CPU, make_params().runtime)
    stored = torch.stack([torch.tensor(split.reader.pixels(i)) for i in split.positions.tolist()])
    images = PixelNormalizer(artifact.statistics)(stored.permute(0, 3, 1, 2))
    with torch.no_grad():
        expected = artifact.encoder(images)
    torch.testing.assert_close(found["cls"], expected.cls, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["mean"], expected.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["pixels"], images.flatten(1))
    assert all(vectors.dtype == torch.float32 for vectors in found.values())


def test_large_pixels_are_averaged_and_small_ones_left() -> None:
    images = torch.rand(2, 3, 64, 16)
    expected = nn.functional.avg_pool2d(images, (2, 1)).flatten(1)
    torch.testing.assert_close(pixels(images), expected)


@pytest.mark.parametrize(("channels", "bit_depth"), [(3, 8), (1, 16)])
def test_an_encoder_for_other_images_is_refused(
    digit_shards, make_encoder, channels: int, bit_depth: int
) -> None:
    artifact = load_encoder(make_encoder(channels, bit_depth))
    with pytest.raises(DataError, match=f"takes images of {channels} channels and {bit_depth}"):
        check_encoder_fits(artifact, read_dataset_info(digit_shards))


def test_batches_visit_every_row_once_an_epoch() -> None:
    features = torch.arange(12.0)[:, None]
    loader = FeatureLoader(features, torch.arange(12), optim(4), seed=1, purpose="test")
    batches = list(loader.batches(0, 6))
    epochs = [torch.cat([b.labels for b in batches[i : i + 3]]) for i in (0, 3)]
    for labels in epochs:
        assert labels.sort().values.tolist() == list(range(12))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert all(batch.features[:, 0].tolist() == batch.labels.tolist() for batch in batches)
    assert [loader.epoch_of(step) for step in range(6)] == [0, 0, 0, 1, 1, 1]


def test_batches_depend_on_the_step_alone_and_a_small_set_is_one_batch() -> None:
    loader = FeatureLoader(torch.rand(10, 2), torch.arange(10), optim(4), seed=1, purpose="test")
    whole = [batch.labels.tolist() for batch in loader.batches(0, 6)]
    assert [batch.labels.tolist() for batch in loader.batches(3, 6)] == whole[3:]
    assert [len(rows) for rows in whole] == [4] * 6
    small = FeatureLoader(torch.rand(3, 2), torch.arange(3), optim(4), seed=1, purpose="test")
    assert [len(batch) for batch in small.batches(0, 2)] == [3, 3]
