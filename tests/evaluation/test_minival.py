from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mae.errors import DataError
from mae.evaluation.labelled import LabelledSplit
from mae.evaluation.minival import best_along, minival_rows, split_minival
from mae.hashing import random_bits


def fake_split(labels: list[int], ids: torch.Tensor | None = None) -> LabelledSplit:
    """A split without images: labels, and ids that differ from positions."""
    positions = torch.arange(len(labels)) * 2
    if ids is None:
        ids = random_bits(5, "ids", 0, torch.arange(2 * len(labels)), 1)[:, 0]
    reader = SimpleNamespace(ids=ids)
    return LabelledSplit("train", reader, positions, torch.tensor(labels))  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.floats(0.05, 0.9))
def test_holds_back_a_share_of_every_class_that_can_spare_it(labels, share) -> None:
    counts = torch.bincount(torch.tensor(labels), minlength=5).tolist()
    split = fake_split(labels)
    if max(counts) == 1:
        with pytest.raises(DataError, match="single labelled image"):
            minival_rows(split, share, 0)
        return
    fit, held = minival_rows(split, share, 0)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert fit.tolist() == sorted(fit.tolist()) and held.tolist() == sorted(held.tolist())
    for label, count in enumerate(counts):
        of_class = int((split.labels[held] == label).sum())
        assert of_class <= max(0, count - 1)
        if count > 1:
            assert of_class >= 1 and abs(of_class - share * count) <= 1


def test_is_a_function_of_the_seed_and_of_the_images_alone() -> None:
    labels = [0, 1, 2] * 20
    split = fake_split(labels)
    fit, held = split_minival(split, 0.2, seed=3)
    again = split_minival(split, 0.2, seed=3)
    assert held.ids.tolist() == again[1].ids.tolist()
    assert set(held.ids.tolist()) != set(split_minival(split, 0.2, seed=4)[1].ids.tolist())
    # The same images in the opposite order: the same ones are held back.
    turned = fake_split(labels[::-1], split.reader.ids.flip(0).roll(-1))
    assert turned.ids.flip(0).tolist() == split.ids.tolist()
    assert set(split_minival(turned, 0.2, 3)[1].ids.tolist()) == set(held.ids.tolist())
    assert not set(fit.ids.tolist()) & set(held.ids.tolist())


def test_the_best_of_a_grid_is_the_smallest_of_equals() -> None:
    accuracy = {0.1: 0.5, 1.0: 0.8, 10.0: 0.8, 100.0: 0.7}
    best, tried = best_along([100.0, 10.0, 0.1, 1.0, 1.0], accuracy.__getitem__)
    assert best == 1.0
    assert tried == accuracy


def test_the_rest_of_a_grid_is_not_tried_after_two_falls() -> None:
    accuracy = {1.0: 0.5, 2.0: 0.8, 3.0: 0.7, 4.0: 0.75, 5.0: 0.6, 6.0: 0.5}
    best, tried = best_along([*accuracy, 7.0], accuracy.__getitem__)
    assert best == 2.0
    assert tried == accuracy


def test_without_a_choice_nothing_is_tried() -> None:
    def never(_: float) -> float:
        raise AssertionError

    assert best_along([3.0], never) == (3.0, {})
