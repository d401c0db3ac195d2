from itertools import chain

import pytest
import torch

from mae.errors import DataError
from mae.evaluation.feature_loader import FeatureLoader
from mae.params import OptimParams
from mae.training.devices import Place

HERE = Place(torch.device("cpu"))


def optim(batch: int) -> OptimParams:
    return OptimParams(
        epochs=2, batch=batch, blr=1.0, weight_decay=0.0, warmup_epochs=0, precision="fp32"
    )


def loader_of(images: int, batch: int, place: Place = HERE, seed: int = 1) -> FeatureLoader:
    """Features that are their own row numbers, of which every second one is learned from."""
    features = torch.arange(2.0 * images)[:, None].repeat(1, 3)
    rows = torch.arange(images) * 2
    labels = torch.arange(2 * images)
    return FeatureLoader(features, labels, rows, optim(batch), place, seed=seed, purpose="test")


def rows_of(loader: FeatureLoader, start: int, stop: int) -> list[list[int]]:
    batches = list(loader.batches(start, stop))
    for batch in batches:
        assert torch.equal(batch.features[:, 0].long(), batch.labels)
    return [batch.labels.tolist() for batch in batches]


def test_an_epoch_shows_each_wanted_row_once_in_an_order_of_its_own() -> None:
    loader = loader_of(12, batch=4)
    assert (loader.steps_per_epoch, loader.epoch_of(2), loader.epoch_of(3)) == (3, 0, 1)
    batches = rows_of(loader, 0, 6)
    first, second = (list(chain(*batches[:3])), list(chain(*batches[3:])))
    assert sorted(first) == sorted(second) == list(range(0, 24, 2))
    assert first != second


def test_a_step_always_gives_the_same_batch() -> None:
    whole = rows_of(loader_of(10, batch=4), 0, 6)
    assert whole[3:] == rows_of(loader_of(10, batch=4), 3, 6)
    assert whole != rows_of(loader_of(10, batch=4, seed=2), 0, 6)


def test_ragged_ends_are_left_out_and_small_sets_make_small_batches() -> None:
    assert [len(rows) for rows in rows_of(loader_of(10, batch=4), 0, 2)] == [4, 4]
    assert sorted(rows_of(loader_of(3, batch=4), 0, 1)[0]) == [0, 2, 4]


def test_processes_share_each_batch() -> None:
    device = torch.device("cpu")
    parts = [rows_of(loader_of(12, 4, Place(device, rank, 2)), 0, 6) for rank in range(2)]
    joined = [one + other for one, other in zip(*parts, strict=True)]
    assert joined == rows_of(loader_of(12, batch=4), 0, 6)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(DataError, match="3"):
        loader_of(12, 4, Place(torch.device("cpu"), 0, 3))
