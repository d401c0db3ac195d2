import dataclasses
import logging

import pytest
import torch

from mae.data.dataset import read_dataset_info
from mae.errors import DataError
from mae.evaluation.labelled import (
    LabelledSplit,
    all_images,
    draw_labels,
    labelled_split,
    train_and_test,
    why_not_classifiable,
)

SMALL = {"train": {"a": 6, "b": 4}, "val": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}}


def fake_split(labels: list[int]) -> LabelledSplit:
    """A split whose images lie at every second position, as if the others had no label."""
    positions = torch.arange(len(labels)) * 2
    return LabelledSplit("train", None, positions, torch.tensor(labels))  # type: ignore[arg-type]


def test_reads_the_labelled_images_of_a_split(make_shards) -> None:
    shards = make_shards(SMALL)
    train, test = train_and_test(shards)
    assert (len(train), len(test)) == (10, 4)
    assert train.labels.tolist() == train.reader.labels[train.positions].tolist()
    assert why_not_classifiable(read_dataset_info(shards)) is None


def test_no_labels_is_a_sentence(make_shards) -> None:
    shards = make_shards({"train": {"": 5}, "val": {"": 2}, "test": {"": 2}})
    assert "no labels" in (why_not_classifiable(read_dataset_info(shards)) or "")


def test_one_class_is_a_sentence(make_shards) -> None:
    info = dataclasses.replace(read_dataset_info(make_shards(SMALL)), classes=("a",))
    assert "label 'a': with a single class" in (why_not_classifiable(info) or "")


def test_a_class_that_train_lacks_is_named(make_shards) -> None:
    shards = make_shards({**SMALL, "test": {"a": 2, "b": 1, "rare": 1}})
    with pytest.raises(DataError, match=r"class 'rare' .* without a labelled image in train"):
        train_and_test(shards)


def test_a_class_that_test_lacks_is_said(make_shards, caplog: pytest.LogCaptureFixture) -> None:
    shards = make_shards({**SMALL, "test": {"a": 2}})
    with caplog.at_level(logging.WARNING):
        train_and_test(shards)
    assert "class 'b' without a test image" in caplog.text


def test_a_split_without_labels_is_refused(make_shards) -> None:
    shards = make_shards({**SMALL, "val": {"": 3}})
    with pytest.raises(DataError, match="split val"):
        labelled_split(shards, "val")


def test_labels_that_are_no_integers_are_names_of_classes(make_shards) -> None:
    shards = make_shards({"train": {"1.5": 3, "cat": 2}, "test": {"1.5": 1, "cat": 1}})
    train, test = train_and_test(shards)
    assert read_dataset_info(shards).classes == ("1.5", "cat")
    assert train.labels.tolist().count(0) == 3 and sorted(test.labels.tolist()) == [0, 1]


def test_some_images_keep_their_labels_and_ids(make_shards) -> None:
    train = labelled_split(make_shards(SMALL), "train")
    some = train.take(torch.tensor([7, 2]))
    assert some.labels.tolist() == train.labels[[7, 2]].tolist()
    assert some.ids.tolist() == train.reader.ids[train.positions[[7, 2]]].tolist()


def test_images_without_labels_can_be_taken_too(make_shards) -> None:
    shards = make_shards({"train": {"a": 4, "b": 4, "": 3}, "test": {"a": 1, "b": 1}})
    every = all_images(shards, "train")
    assert len(every) == 11 and (every.labels == -1).sum() == 3
    assert len(labelled_split(shards, "train")) == 8
    assert all_images(shards, "train", at_most=4).positions.tolist() == [0, 2, 5, 8]
    assert len(all_images(shards, "train", at_most=40)) == 11


def test_a_budget_takes_as_many_of_each_class() -> None:
    split = fake_split([0, 1, 2] * 10)
    drawn = draw_labels(split, 4, ("a", "b", "c"), seed=0)
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    labels = dict(zip(split.positions.tolist(), split.labels.tolist(), strict=True))
    assert sorted(labels[position] for position in drawn.tolist()) == [0] * 4 + [1] * 4 + [2] * 4


def test_a_budget_is_a_function_of_the_seed_and_part_of_larger_ones() -> None:
    split, classes = fake_split([0, 1] * 30), ("a", "b")
    few, more = (set(draw_labels(split, count, classes, 3).tolist()) for count in (5, 12))
    assert few < more
    assert few == set(draw_labels(split, 5, classes, 3).tolist())
    assert few != set(draw_labels(split, 5, classes, 4).tolist())


def test_all_labels_is_everything() -> None:
    split = fake_split([0, 1, 1])
    assert draw_labels(split, None, ("a", "b"), 0).tolist() == [0, 2, 4]


def test_a_class_with_too_few_labels_is_named() -> None:
    with pytest.raises(DataError, match=r"class 'b' has 1 labelled images .* fewer than the 2"):
        draw_labels(fake_split([0, 0, 1]), 2, ("a", "b"), 0)
