import dataclasses
from pathlib import Path

import pytest
import torch

from mae.errors import DataError
from mae.evaluation import few_shot
from mae.evaluation.arms import frozen_arms
from mae.evaluation.feature_cache import features_of
from mae.evaluation.few_shot import draw_shots
from mae.evaluation.labelled import train_and_test
from mae.evaluation.outcome import Outcome
from mae.model.artifact import load_encoder
from mae.params import Params
from mae.training.devices import Place

HERE = Place(torch.device("cpu"))


@pytest.fixture(scope="module")
def shots_params(make_params) -> Params:
    return make_params(few_shot={"shots": [5, 1], "draws": 2})


@pytest.fixture(scope="module")
def outcome(digit_shards, tiny_encoder, shots_params, tmp_path_factory) -> Outcome:
    pictures = tmp_path_factory.mktemp("pictures")
    return few_shot.run(shots_params, digit_shards, tiny_encoder, HERE, pictures)


def test_draws_are_of_every_class_and_nested_and_of_the_seed(digit_shards, shots_params) -> None:
    train, _ = train_and_test(digit_shards)
    classes = tuple(map(str, range(10)))
    (one, five), left_out = draw_shots(shots_params, train, classes)
    assert (one.count, five.count, left_out) == (1, 5, [])
    for few, more in zip(one.draws, five.draws, strict=True):
        assert torch.bincount(train.labels[few], minlength=10).tolist() == [1] * 10
        assert torch.bincount(train.labels[more], minlength=10).tolist() == [5] * 10
        assert set(few.tolist()) < set(more.tolist())
    assert not torch.equal(*five.draws)
    again, _ = draw_shots(shots_params, train, classes)
    assert torch.equal(again[1].draws[1], five.draws[1])


def test_equals_scikit_learn_on_the_drawn_labels(
    outcome, digit_shards, tiny_encoder, shots_params
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, test = train_and_test(digit_shards)
    arm = frozen_arms(shots_params, load_encoder(tiny_encoder), pixels=False)["pretrained"]
    features, queries = (
        features_of(arm, split, shots_params.evaluate.few_shot.feature, shots_params, HERE)
        .double()
        .numpy()
        for split in (train, test)
    )
    (_, five), _ = draw_shots(shots_params, train, tuple(map(str, range(10))))
    expected = []
    for rows in five.draws:
        scaler = StandardScaler().fit(features[rows])
        model = LogisticRegression(C=1.0, max_iter=2000, tol=1e-8)
        model.fit(scaler.transform(features[rows]), train.labels[rows])
        expected.append(model.score(scaler.transform(queries), test.labels))
    # One image in 120 may lie on a border.
    measured = outcome.detail["pretrained"]["5_shot"]["accuracies"]
    assert measured == pytest.approx(expected, abs=1.01 / 120)


def test_numbers_are_means_over_draws_beside_every_baseline(outcome) -> None:
    for name, suffix in (("pretrained", ""), ("random", "_random"), ("pixels", "_pixels")):
        for shots in ("1_shot", "5_shot"):
            values = outcome.detail[name][shots]["accuracies"]
            assert len(values) == 2
            assert outcome.numbers[f"accuracy_{shots}{suffix}"] == pytest.approx(sum(values) / 2)
            deviation = abs(values[0] - values[1]) / 2**0.5
            assert outcome.numbers[f"accuracy_{shots}{suffix}_std"] == pytest.approx(deviation)
            low, high = outcome.detail[name][shots]["interval"]
            assert low <= sum(values) / 2 <= high
    assert outcome.numbers["accuracy_5_shot_pixels"] > outcome.numbers["accuracy_1_shot_pixels"]


def test_comparisons_are_paired_by_the_draw(outcome) -> None:
    found = {(one.task, one.baseline): one for one in outcome.comparisons}
    assert set(found) == {
        (f"Few-shot, {shots} per class", name)
        for shots in ("1 label", "5 labels")
        for name in ("random encoder", "raw pixels")
    }
    one = found["Few-shot, 5 labels per class", "raw pixels"]
    assert one.paired and one.images == 120
    assert one.values == tuple(outcome.detail["pixels"]["5_shot"]["accuracies"])


def test_the_result_is_the_same_each_time(
    outcome, digit_shards, tiny_encoder, shots_params, tmp_path
) -> None:
    again = few_shot.run(shots_params, digit_shards, tiny_encoder, HERE, tmp_path)
    assert dataclasses.asdict(again) == dataclasses.asdict(outcome)


def test_too_many_shots_for_a_class_are_left_out_in_words(
    make_shards, tiny_encoder, make_params, tmp_path: Path
) -> None:
    counts = {"a": 6, "b": 2}
    shards = make_shards({"train": counts, "val": counts, "test": counts})
    params = make_params(few_shot={"shots": [1, 5], "draws": 1})
    measured = few_shot.run(params, shards, tiny_encoder, HERE, tmp_path)
    assert "accuracy_1_shot" in measured.numbers and "accuracy_5_shot" not in measured.numbers
    (sentence,) = measured.detail["left_out"]
    assert "'b' has 2" in sentence
    nothing = make_params(few_shot={"shots": [5, 10], "draws": 1})
    skipped = few_shot.run(nothing, shards, tiny_encoder, HERE, tmp_path)
    assert skipped.numbers == {} and "'b' has 2" in (skipped.skipped or "")


def test_no_labels_is_skipped_in_words(make_shards, tiny_encoder, make_params, tmp_path) -> None:
    shards = make_shards({split: {"": 3} for split in ("train", "val", "test")})
    measured = few_shot.run(make_params(), shards, tiny_encoder, HERE, tmp_path)
    assert measured.numbers == {} and "no labels" in (measured.skipped or "")


def test_other_channels_are_refused(digit_shards, make_encoder, make_params, tmp_path) -> None:
    with pytest.raises(DataError, match="3 channels"):
        few_shot.run(make_params(), digit_shards, make_encoder(3, 8), HERE, tmp_path)
