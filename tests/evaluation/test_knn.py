import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mae.errors import DataError
from mae.evaluation import knn
from mae.evaluation.knn import Choices, choices, choose_and_test
from mae.evaluation.labelled import labelled_split
from mae.evaluation.neighbours import Bank
from mae.training.devices import Place

CPU = torch.device("cpu")
HERE = Place(CPU)


def run(params, shards: Path, encoder: Path, pictures: Path):
    return knn.run(params, shards, encoder, HERE, pictures)


def on_a_circle(*angles: float) -> torch.Tensor:
    points = torch.tensor(angles)
    return torch.stack([points.cos(), points.sin()], 1)


def test_k_is_chosen_on_minival_and_not_on_test() -> None:
    # Three of class 0, then one stray of class 1 among them, then the rest of class 1; the last
    # is held back, and lies near the stray.
    vectors = on_a_circle(0.0, 0.1, 0.2, 0.05, 2.0, 2.1, 2.2, 0.05)
    held = torch.tensor([7])
    near_stray, says_0, says_1 = on_a_circle(0.05), torch.tensor([0]), torch.tensor([1])

    def result(held_label: int, test_label: torch.Tensor):
        labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, held_label])
        bank = Bank(vectors, labels, 2)
        return choose_and_test(bank, (near_stray, test_label), Choices((1, 5), held), 1.0, CPU)

    by_nearest = result(1, says_0)
    assert by_nearest.k == 1 and by_nearest.minival_accuracy == {1: 1.0, 5: 0.0}
    by_vote = result(0, says_1)
    assert by_vote.k == 5 and by_vote.minival_accuracy == {1: 0.0, 5: 1.0}
    # Test is read with all of train, the image held back included: 4 of 5 votes.
    assert result(0, says_0).scores.top1 == 1.0


def test_equal_on_minival_takes_the_smallest_k() -> None:
    points = nn.functional.normalize(torch.rand(6, 3), dim=1)
    bank = Bank(points, torch.zeros(6, dtype=torch.int64), 2)
    held = torch.tensor([5])
    result = choose_and_test(bank, (points, bank.labels), Choices((2, 3, 4), held), 0.07, CPU)
    assert result.k == 2


def test_measures_digits_the_same_each_time(
    digit_shards, tiny_encoder, make_params, tmp_path
) -> None:
    params = make_params(knn={"k": [10, 20, 100, 200], "feature": "both"})
    first = run(params, digit_shards, tiny_encoder, tmp_path)
    assert first == run(params, digit_shards, tiny_encoder, tmp_path)
    assert first.skipped is None
    assert first.numbers["k"] in params.evaluate.knn.k
    # Far above the chance of 0.1: digits resemble their own kind in any reasonable space.
    assert first.numbers["accuracy_pixels"] > 0.2
    assert {"accuracy", "accuracy_random", "balanced_accuracy", "top5_accuracy"} <= set(
        first.numbers
    )
    detail = first.detail["pretrained"]
    assert set(detail["per_class"]) == {str(digit) for digit in range(10)}
    assert set(detail["minival_accuracy"]) == {"10", "20", "100", "200"}
    assert first.detail["images"] == {"train": 360, "test": 120}
    assert first.detail["left_out"] is None
    assert [one.baseline for one in first.comparisons] == ["random encoder", "raw pixels"]
    assert all(one.images == 120 for one in first.comparisons)
    json.dumps(dataclasses.asdict(first), allow_nan=False)


def test_a_baseline_of_the_users_is_measured_beside(
    digit_shards, tiny_encoder, make_params, tmp_path
) -> None:
    params = make_params(knn={"k": [10]})
    evaluate = params.evaluate.model_copy(update={"baselines": {"twin": str(tiny_encoder)}})
    params = params.model_copy(update={"evaluate": evaluate})
    outcome = run(params, digit_shards, tiny_encoder, tmp_path)
    assert outcome.numbers["accuracy_twin"] == outcome.numbers["accuracy"]
    assert outcome.detail["twin"]["top1"] == outcome.numbers["accuracy"]
    assert "twin" in [one.baseline for one in outcome.comparisons]


def test_an_empty_val_split_does_not_matter(
    make_shards, tiny_encoder, make_params, tmp_path
) -> None:
    counts = {"a": 12, "b": 12}
    shards = make_shards({"train": counts, "test": counts})
    outcome = run(make_params(knn={"k": [1, 3]}), shards, tiny_encoder, tmp_path)
    assert 0 <= outcome.numbers["accuracy"] <= 1


def test_k_beyond_the_bank_are_left_out_in_words(digit_shards, make_params) -> None:
    train = labelled_split(digit_shards, "train").take(torch.arange(30))
    params = make_params(knn={"k": [1, 5, 28, 100]})
    found = choices(params.evaluate.knn, train, params)
    assert found.ks == (1, 5)
    assert found.left_out is not None and "k of 28, 100 left out" in found.left_out
    # One that is left needs no choice, and may use all of train.
    params = make_params(knn={"k": [28, 100]})
    assert choices(params.evaluate.knn, train, params).ks == (28,)
    assert choices(params.evaluate.knn, train, params).minival is None


def test_more_neighbours_than_images_are_refused(
    make_shards, tiny_encoder, make_params, tmp_path
) -> None:
    counts = {"a": 3, "b": 3}
    shards = make_shards({"train": counts, "val": counts, "test": counts})
    with pytest.raises(DataError, match=r"asks for 10 neighbours at least and train has 6"):
        run(make_params(), shards, tiny_encoder, tmp_path)


def test_no_labels_is_skipped_in_words(make_shards, tiny_encoder, make_params, tmp_path) -> None:
    shards = make_shards({split: {"": 3} for split in ("train", "val", "test")})
    outcome = run(make_params(), shards, tiny_encoder, tmp_path)
    assert outcome.numbers == {} and "no labels" in (outcome.skipped or "")


def test_other_channels_are_refused(digit_shards, make_encoder, make_params, tmp_path) -> None:
    with pytest.raises(DataError, match="3 channels"):
        run(make_params(), digit_shards, make_encoder(3, 8), tmp_path)
