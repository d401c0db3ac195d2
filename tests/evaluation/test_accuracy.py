import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from mae.evaluation.accuracy import measure_accuracy

LABELS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60)


@given(LABELS)
@pytest.mark.filterwarnings("ignore::UserWarning:sklearn")
def test_agrees_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    found = measure_accuracy(torch.tensor(predicted), torch.tensor(truth), classes=6)
    assert found.top1 == pytest.approx(accuracy_score(truth, predicted))
    assert found.balanced == pytest.approx(balanced_accuracy_score(truth, predicted))
    present = sorted(set(truth.tolist()))
    recalls = recall_score(truth, predicted, labels=present, average=None, zero_division=0)
    assert [found.per_class[label] for label in present] == pytest.approx(list(recalls))


def test_a_class_without_images_has_no_accuracy_and_does_not_count() -> None:
    found = measure_accuracy(torch.tensor([0, 2, 2]), torch.tensor([0, 0, 2]), classes=3)
    assert found.per_class == (0.5, None, 1.0)
    assert found.balanced == 0.75
    assert found.to_dict(["a", "b", "c"])["per_class"] == {"a": 0.5, "b": None, "c": 1.0}
