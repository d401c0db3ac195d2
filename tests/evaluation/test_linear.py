import dataclasses
import json
from pathlib import Path

import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from mae.errors import DataError
from mae.evaluation import linear
from mae.evaluation.arms import frozen_arms
from mae.evaluation.feature_cache import features_of
from mae.evaluation.labelled import train_and_test
from mae.evaluation.linear import choose_and_test
from mae.evaluation.logistic import fit_logistic
from mae.evaluation.minival import minival_rows
from mae.evaluation.scores import measure_predicted, measure_scores
from mae.model.artifact import load_encoder
from mae.training.devices import Place

HERE = Place(torch.device("cpu"))
QUICK = {"logistic_c": [0.01, 1.0], "svm_c": [0.01]}


def run(params, shards: Path, encoder: Path, pictures: Path):
    return linear.run(params, shards, encoder, HERE, pictures)


def test_c_is_chosen_on_minival_and_test_read_once_with_all_of_train() -> None:
    asked = []

    def learn(train, test, classes, c):
        asked.append((c, train[1].tolist(), test[1].tolist()))
        right = {0.1: 1, 1.0: 2, 10.0: 2}[c]
        return measure_predicted((torch.arange(len(test[1])) >= right).long(), test[1], classes)

    labels = torch.zeros(6, dtype=torch.int64)
    train, test = (torch.rand(6, 2), labels), (torch.rand(4, 2), labels[:4])
    rows = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    found = choose_and_test(learn, train, test, 2, (10.0, 1.0, 0.1), rows)
    assert found.c == 1.0
    assert found.minival_accuracy == {c: pytest.approx(n / 3) for c, n in
                                      ((0.1, 1), (1.0, 2), (10.0, 2))}  # fmt: skip
    assert [len(one[1]) for one in asked] == [3, 3, 3, 6]
    assert [len(one[2]) for one in asked] == [3, 3, 3, 4]
    assert found.scores.top1 == 0.5


def test_numbers_are_those_of_both_classifiers_on_the_features(
    digit_shards, tiny_encoder, make_params, tmp_path
) -> None:
    params = make_params(linear=QUICK)
    outcome = run(params, digit_shards, tiny_encoder, tmp_path)
    train, test = train_and_test(digit_shards)
    arm = frozen_arms(params, load_encoder(tiny_encoder), pixels=False)["pretrained"]
    known, unknown = (features_of(arm, one, "cls", params, HERE) for one in (train, test))
    fit, minival = minival_rows(train, params.evaluate.minival, params.seed)
    accuracy = {}
    for c in QUICK["logistic_c"]:
        model = fit_logistic(known[fit], train.labels[fit], 10, c)
        accuracy[c] = measure_scores(model.logits(known[minival]), train.labels[minival]).top1
    c = max(accuracy, key=lambda one: accuracy[one])
    scores = measure_scores(fit_logistic(known, train.labels, 10, c).logits(unknown), test.labels)
    assert outcome.detail["logistic"]["pretrained"]["c"] == c
    assert outcome.numbers["accuracy"] == scores.top1
    assert outcome.numbers["calibration_error"] == scores.calibration_error
    machine = make_pipeline(StandardScaler(), LinearSVC(C=0.01, random_state=0, max_iter=10_000))
    machine.fit(known.double(), train.labels)
    assert outcome.numbers["accuracy_svm"] == machine.score(unknown.double(), test.labels)


def test_measures_digits_the_same_each_time(
    digit_shards, tiny_encoder, make_params, tmp_path
) -> None:
    params = make_params(linear=QUICK)
    first = run(params, digit_shards, tiny_encoder, tmp_path)
    assert first == run(params, digit_shards, tiny_encoder, tmp_path)
    assert first.numbers["accuracy_pixels"] > 0.2
    assert {"accuracy_random", "accuracy_svm_random", "balanced_accuracy_svm"} <= set(first.numbers)
    assert [(one.task, one.baseline) for one in first.comparisons] == [
        ("Logistic regression", "random encoder"),
        ("Logistic regression", "raw pixels"),
        ("Linear SVM", "random encoder"),
    ]
    json.dumps(dataclasses.asdict(first), allow_nan=False)


def test_single_values_need_no_minival(make_shards, tiny_encoder, make_params, tmp_path) -> None:
    shards = make_shards({"train": {"a": 1, "b": 1}, "test": {"a": 4, "b": 4}})
    params = make_params(linear={"logistic_c": [1.0], "svm_c": [0.1]})
    outcome = run(params, shards, tiny_encoder, tmp_path)
    assert outcome.detail["logistic"]["pretrained"]["minival_accuracy"] == {}
    with pytest.raises(DataError, match="none can be held back"):
        run(make_params(), shards, tiny_encoder, tmp_path)


def test_one_class_or_no_labels_is_skipped_in_words(
    make_shards, tiny_encoder, make_params, tmp_path
) -> None:
    shards = make_shards({split: {"": 3} for split in ("train", "test")})
    outcome = run(make_params(), shards, tiny_encoder, tmp_path)
    assert outcome.numbers == {} and "no labels" in (outcome.skipped or "")


def test_other_channels_are_refused(digit_shards, make_encoder, make_params, tmp_path) -> None:
    with pytest.raises(DataError, match="3 channels"):
        run(make_params(), digit_shards, make_encoder(3, 8), tmp_path)
