import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    recall_score,
    top_k_accuracy_score,
)

from mae.errors import DataError
from mae.evaluation.scores import mean_numbers, measure_predicted, measure_scores

LABELS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60)


@given(LABELS)
@pytest.mark.filterwarnings("ignore::UserWarning:sklearn")
def test_predicted_labels_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    found = measure_predicted(torch.tensor(predicted), torch.tensor(truth), classes=6)
    assert found.top1 == pytest.approx(accuracy_score(truth, predicted))
    assert found.balanced == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert np.array_equal(found.confusion, confusion_matrix(truth, predicted, labels=range(6)))
    present = sorted(set(truth.tolist()))
    recalls = recall_score(truth, predicted, labels=present, average=None, zero_division=0)
    assert [found.per_class[label] for label in present] == pytest.approx(list(recalls))
    assert (found.top5, found.calibration_error) == (None, None)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_logits_agree_with_scikit_learn(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, 9, generator=generator)
    labels = torch.randint(0, 9, (40,), generator=generator)
    found = measure_scores(logits, labels)
    top5 = top_k_accuracy_score(labels, logits, k=5, labels=range(9))
    assert found.top5 == pytest.approx(top5)
    without = dataclasses.replace(found, top5=None, calibration_error=None)
    assert without == measure_predicted(logits.argmax(1), labels, 9)


def test_a_class_without_images_has_no_accuracy_and_does_not_count() -> None:
    found = measure_predicted(torch.tensor([0, 2, 2]), torch.tensor([0, 0, 2]), classes=3)
    assert found.per_class == (0.5, None, 1.0)
    assert found.balanced == 0.75
    assert found.to_dict(["a", "b", "c"])["per_class"] == {"a": 0.5, "b": None, "c": 1.0}
    assert found.confusion == ((1, 0, 1), (0, 0, 0), (0, 0, 1))


def test_calibration_by_hand() -> None:
    # Two images at 0.9, one right; two at 0.6 (another bin), both right.
    sure, unsure = math.log(9), math.log(1.5)
    logits = torch.tensor([[sure, 0.0], [sure, 0.0], [unsure, 0.0], [unsure, 0.0]])
    found = measure_scores(logits, torch.tensor([0, 1, 0, 0]))
    assert found.calibration_error == pytest.approx(0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.6 - 1.0))


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_calibration_agrees_with_bins_one_by_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(200, 4, generator=generator)
    labels = torch.randint(0, 4, (200,), generator=generator)
    confidence, predicted = logits.double().softmax(1).max(1)
    error = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            right = (predicted == labels)[inside].double().mean()
            error += float(inside.double().mean() * (confidence[inside].mean() - right).abs())
    assert measure_scores(logits, labels).calibration_error == pytest.approx(error)


def test_logarithms_of_votes_are_their_confidence() -> None:
    votes = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]])
    found = measure_scores(votes.log(), torch.tensor([0, 2]))
    assert found.top1 == 1.0
    assert found.calibration_error == pytest.approx(0.125)


def test_a_class_without_a_vote_is_not_among_the_likeliest() -> None:
    votes = torch.zeros(2, 8)
    votes[:, 0], votes[:, 6] = 0.6, 0.4
    assert measure_scores(votes.log(), torch.tensor([6, 1])).top5 == 0.5


def test_five_classes_have_no_top5() -> None:
    assert measure_scores(torch.eye(5), torch.arange(5)).top5 is None
    assert measure_scores(torch.eye(6), torch.arange(6)).top5 == 1.0


def test_a_nan_is_refused() -> None:
    with pytest.raises(DataError, match="NaN"):
        measure_scores(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))


def test_numbers_are_named_and_written_as_json() -> None:
    found = measure_scores(torch.eye(6), torch.arange(6))
    assert set(found.numbers("_random")) == {
        "accuracy_random",
        "balanced_accuracy_random",
        "top5_accuracy_random",
        "calibration_error_random",
    }
    assert set(measure_predicted(torch.zeros(1).long(), torch.zeros(1).long(), 2).numbers()) == {
        "accuracy",
        "balanced_accuracy",
    }
    json.dumps(found.to_dict([str(label) for label in range(6)]), allow_nan=False)


def test_a_thousand_classes_are_not_confused_in_writing() -> None:
    found = measure_scores(torch.eye(200), torch.arange(200))
    assert found.to_dict([str(label) for label in range(200)])["confusion"] is None


def test_means_over_seeds_have_a_deviation() -> None:
    labels = torch.arange(6)
    right, half = torch.eye(6), torch.eye(6)[[0, 1, 2, 0, 0, 0]]
    numbers = mean_numbers([measure_scores(one, labels) for one in (right, half)], "_x")
    assert numbers["accuracy_x"] == 0.75
    assert numbers["accuracy_x_std"] == pytest.approx(0.5 / 2**0.5)
