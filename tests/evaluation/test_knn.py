import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from mae.errors import DataError
from mae.evaluation import knn
from mae.evaluation.knn import Bank, choose_and_test, knn_predict
from mae.params import KnnParams

CPU = torch.device("cpu")


def vectors(count: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit vectors around four corners, hard enough that neighbours disagree, and their labels."""
    labels = torch.arange(count) % 4
    points = nn.functional.one_hot(labels, 8) * 1.5 + vectors(count, 8, seed) * 1.5
    return nn.functional.normalize(points.float(), dim=1), labels


def scikit_learn(bank: Bank, queries: Tensor, k: int, temperature: float) -> np.ndarray:
    def weight(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / temperature)

    classifier = KNeighborsClassifier(k, weights=weight, metric="cosine", algorithm="brute")
    return classifier.fit(bank.vectors.double(), bank.labels).predict(queries.double())


@given(seed=st.integers(0, 1000), k=st.integers(1, 40), temperature=st.sampled_from([0.07, 0.5]))
@settings(max_examples=25, deadline=None)
def test_agrees_with_scikit_learn(seed: int, k: int, temperature: float) -> None:
    bank = Bank(*clusters(60, seed), classes=4)
    queries, _ = clusters(30, seed + 1)
    found = knn_predict(bank, queries, [k], temperature, CPU)[k]
    assert found.tolist() == scikit_learn(bank, queries, k, temperature).tolist()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, (queries, _) = Bank(*clusters(101, 0), classes=4), clusters(37, 1)
    whole = knn_predict(bank, queries, [1, 5, 20], 0.07, CPU)
    monkeypatch.setattr(knn, "_QUERIES", 8)
    monkeypatch.setattr(knn, "_BANK", 13)
    pieces = knn_predict(bank, queries, [1, 5, 20], 0.07, CPU)
    assert {k: v.tolist() for k, v in pieces.items()} == {k: v.tolist() for k, v in whole.items()}


def test_a_tiny_temperature_is_the_nearest_neighbour() -> None:
    bank, (queries, _) = Bank(*clusters(50, 0), classes=4), clusters(20, 1)
    nearest = knn_predict(bank, queries, [1], 0.07, CPU)[1]
    assert knn_predict(bank, queries, [9], 1e-5, CPU)[9].tolist() == nearest.tolist()


def test_k_is_chosen_on_val_and_not_on_test() -> None:
    # Along a half circle: three of class 0, then one stray of class 1, then the rest of class 1.
    angles = torch.tensor([0.0, 0.1, 0.2, 0.05, 2.0, 2.1, 2.2])
    bank = Bank(
        torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 0, 0, 1, 1, 1, 1]), 2
    )
    near_stray = torch.tensor([[np.cos(0.05), np.sin(0.05)]], dtype=torch.float32)
    params = KnnParams(k=(1, 4), temperature=1.0, feature="cls")
    says_1, says_0 = torch.tensor([1]), torch.tensor([0])
    by_nearest = choose_and_test(bank, (near_stray, says_1), (near_stray, says_0), params, CPU)
    assert (by_nearest.k, by_nearest.accuracy.top1) == (1, 0.0)
    by_vote = choose_and_test(bank, (near_stray, says_0), (near_stray, says_0), params, CPU)
    assert (by_vote.k, by_vote.accuracy.top1) == (4, 1.0)
    assert by_vote.val_accuracy == {1: 0.0, 4: 1.0}


def test_equal_on_val_takes_the_smallest_k() -> None:
    points, labels = vectors(4, 3, 0), torch.zeros(4, dtype=torch.int64)
    params = KnnParams(k=(4, 2, 3), temperature=0.07, feature="cls")
    result = choose_and_test(
        Bank(points, labels, 2), (points, labels), (points, labels), params, CPU
    )
    assert result.k == 2


def test_measures_digits_the_same_each_time(digit_shards, tiny_encoder, make_params) -> None:
    params = make_params()
    first = knn.run(params, digit_shards, tiny_encoder, CPU)
    assert first == knn.run(params, digit_shards, tiny_encoder, CPU)
    assert first.skipped is None
    assert first.numbers["k"] in params.evaluate.knn.k
    # Far above the chance of 0.1: digits resemble their own kind in any reasonable space.
    assert first.numbers["accuracy_pixels"] > 0.2
    assert set(first.detail["pretrained"]["per_class"]) == {str(digit) for digit in range(10)}
    assert first.detail["images"] == {"train": 360, "val": 120, "test": 120}


def test_more_neighbours_than_images_are_refused(make_shards, tiny_encoder, make_params) -> None:
    counts = {"a": 3, "b": 3}
    shards = make_shards({"train": counts, "val": counts, "test": counts})
    with pytest.raises(DataError, match=r"asks for 20 neighbours and train .* has 6"):
        knn.run(make_params(), shards, tiny_encoder, CPU)
