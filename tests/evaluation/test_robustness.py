import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mae.data.reader import ShardReader
from mae.errors import DataError
from mae.evaluation import robustness
from mae.evaluation.arms import frozen_arm
from mae.evaluation.corruptions import corrupt
from mae.evaluation.labelled import train_and_test
from mae.evaluation.robustness import (
    Condition,
    Robustness,
    View,
    learn_classifier,
    measure_under_corruptions,
)
from mae.evaluation.scores import measure_predicted
from mae.model.artifact import load_encoder
from mae.params.evaluation import RobustnessParams
from mae.training.devices import Place
from tests.evaluation.side_by_side import side_by_side

HERE = Place(torch.device("cpu"))
SEED = 5


def wanted(**changes: Any) -> RobustnessParams:
    values: dict[str, Any] = {
        "images": 500,
        "corruptions": ["noise", "contrast"],
        "severities": [1, 5],
        "feature": "mean",
    }
    return RobustnessParams.model_validate(values | changes)


def by_a_corner(images: Tensor) -> Tensor:
    """Tells make_shards' classes apart, which are noise of rising brightness, by one pixel."""
    corner = images[:, 0, 0, 0].double()
    return -(corner[:, None] - torch.tensor([50.0, 110.0, 170.0])).abs()


def by_contrast(images: Tensor) -> Tensor:
    spread = images.double().flatten(1).std(dim=1)
    return -(spread[:, None] - torch.tensor([5.0, 20.0, 40.0])).abs()


def one_by_one(classifier, shards: Path, condition: Condition | None) -> float:
    reader, right = ShardReader(shards, "test"), 0
    for at in range(len(reader)):
        image = torch.tensor(reader.pixels(at)).permute(2, 0, 1)[None]
        if condition is not None:
            image = corrupt(image, reader.ids[[at]], *condition, SEED)
        right += int(classifier(image).argmax()) == int(reader.labels[at])
    return right / len(reader)


@pytest.fixture
def three_classes(make_shards) -> Path:
    few = {"a": 3, "b": 2, "c": 2}
    return make_shards({"train": few, "test": {"a": 31, "b": 40, "c": 33}})


@pytest.mark.parametrize("classifier", [by_a_corner, by_contrast])
def test_every_image_is_counted_once_under_every_condition(three_classes, classifier) -> None:
    _, test = train_and_test(three_classes)
    found = measure_under_corruptions(classifier, test, View(32, 32, 1.0), wanted(), SEED, 2, HERE)
    assert list(found.corrupted) == [
        Condition("noise", 1),
        Condition("noise", 5),
        Condition("contrast", 1),
        Condition("contrast", 5),
    ]
    assert found.clean.top1 == one_by_one(classifier, three_classes, None)
    for condition, scores in found.corrupted.items():
        assert scores.top1 == one_by_one(classifier, three_classes, condition), condition
    assert len({scores.top1 for scores in found.corrupted.values()}) > 1


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_images_and_agree(three_classes, processes: int) -> None:
    _, test = train_and_test(three_classes)

    def measure(place: Place) -> Robustness:
        view = View(32, 32, 1.0)
        return measure_under_corruptions(by_contrast, test, view, wanted(), SEED, 1, place)

    assert side_by_side(processes, measure) == [measure(HERE)] * processes


def test_numbers_are_means_of_means() -> None:
    labels = torch.zeros(10, dtype=torch.int64)

    def scores(right: int):
        return measure_predicted((torch.arange(10) >= right).long(), labels, 2)

    result = Robustness(
        clean=scores(8),
        corrupted={
            Condition("noise", 1): scores(6),
            Condition("noise", 5): scores(2),
            Condition("jpeg", 3): scores(5),
        },
    )
    assert result.numbers("_random") == pytest.approx(
        {
            "accuracy_random": 0.8,
            "accuracy_noise_random": 0.4,
            "accuracy_jpeg_random": 0.5,
            "accuracy_corrupted_random": 0.45,
            "relative_drop_random": 1 - 0.45 / 0.8,
        }
    )
    hopeless = replace(result, clean=scores(0))
    assert "relative_drop" not in hopeless.numbers("")


def test_some_images_are_spread_over_the_split(digit_shards) -> None:
    _, test = train_and_test(digit_shards)
    some = test.evenly_spread(50)
    assert len(some) == 50
    assert len(some.labels.unique()) == 10
    assert (some.positions.diff() > 0).all()
    assert torch.equal(test.evenly_spread(10_000).positions, test.positions)


def test_the_classifier_is_the_one_that_minival_prefers(
    digit_shards, tiny_encoder, make_params
) -> None:
    train, test = train_and_test(digit_shards)
    arm = frozen_arm("pretrained", load_encoder(tiny_encoder))
    view = View(arm.height, arm.width, arm.resize)

    def learned(cs: list[float]):
        params = make_params(linear={"logistic_c": cs})
        classifier = learn_classifier(arm, train, "mean", params, HERE)
        images = torch.cat([batch.images for batch in view.batches(test, 1, 0, 1)])
        return classifier.c, classifier(images)

    # So strong a penalty leaves nothing but the classes' frequencies.
    chosen, logits = learned([1e-9, 1.0])
    assert chosen == 1.0
    assert torch.equal(logits, learned([1.0])[1])


def test_measures_digits_the_same_each_time(
    digit_shards, tiny_encoder, make_params, tmp_path
) -> None:
    params = make_params(
        robustness={"severities": [5], "corruptions": ["jpeg", "noise"]},
        linear={"logistic_c": [1.0]},
    )
    params = params.model_copy(
        update={
            "evaluate": params.evaluate.model_copy(update={"baselines": {"same": tiny_encoder}})
        }
    )
    first = robustness.run(params, digit_shards, tiny_encoder, HERE, tmp_path)
    assert first == robustness.run(params, digit_shards, tiny_encoder, HERE, tmp_path)
    numbers = first.numbers
    # Far above the chance of 0.1.
    assert numbers["accuracy_pixels"] > 0.2
    for name in ("accuracy", "accuracy_corrupted", "accuracy_jpeg", "accuracy_noise"):
        assert numbers[name] == numbers[f"{name}_same"]
        assert {f"{name}_random", f"{name}_pixels"} <= numbers.keys()
    assert numbers["accuracy_noise_pixels"] < numbers["accuracy_pixels"]
    assert [one.baseline for one in first.comparisons] == ["random encoder", "same", "raw pixels"]
    assert {one.images for one in first.comparisons} == {120}
    with (tmp_path / "robustness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3
    drawn = {(row["encoder"], row["corruption"]): float(row["accuracy"]) for row in rows}
    assert drawn["pretrained", "noise"] == numbers["accuracy_noise"]
    assert drawn["pixels", "clean"] == numbers["accuracy_pixels"]
    with Image.open(tmp_path / "robustness.png") as picture:
        assert picture.width > picture.height


def test_only_so_many_images_are_measured(
    digit_shards, tiny_encoder, make_params, tmp_path
) -> None:
    params = make_params(
        robustness={"images": 7, "severities": [1], "corruptions": ["contrast"]},
        linear={"logistic_c": [1.0]},
    )
    found = robustness.run(params, digit_shards, tiny_encoder, HERE, tmp_path)
    assert found.detail["images"] == {"train": 360, "test": 7}
    assert (found.numbers["accuracy"] * 7) % 1 == pytest.approx(0, abs=1e-9)


def test_without_labels_it_is_skipped(make_shards, tiny_encoder, make_params, tmp_path) -> None:
    shards = make_shards({"train": {"": 4}, "test": {"": 4}})
    found = robustness.run(make_params(), shards, tiny_encoder, HERE, tmp_path)
    assert "have no labels" in (found.skipped or "")
    assert not found.numbers
    assert not list(tmp_path.glob("robustness.*"))


def test_an_encoder_of_other_channels_is_refused(
    digit_shards, make_encoder, make_params, tmp_path
) -> None:
    with pytest.raises(DataError, match="3 channels"):
        robustness.run(make_params(), digit_shards, make_encoder(3, 8), HERE, tmp_path)
