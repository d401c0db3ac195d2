import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor, nn

from mae.evaluation import neighbours
from mae.evaluation.neighbours import Bank, knn_predict, knn_votes, nearest

CPU = torch.device("cpu")


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Vectors of any length around four corners, hard enough that neighbours disagree."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    noise = nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=1)
    points = nn.functional.one_hot(labels, 8) * 1.5 + noise * 1.5
    return points * (1 + 4 * torch.rand(count, 1, generator=generator)), labels


def classifier(bank: Bank, k: int, temperature: float) -> KNeighborsClassifier:
    def weight(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / temperature)

    found = KNeighborsClassifier(k, weights=weight, metric="cosine", algorithm="brute")
    return found.fit(bank.vectors.double(), bank.labels)


@given(seed=st.integers(0, 1000), k=st.integers(1, 40), temperature=st.sampled_from([0.07, 0.5]))
@settings(max_examples=25, deadline=None)
def test_votes_agree_with_scikit_learn(seed: int, k: int, temperature: float) -> None:
    bank = Bank(*clusters(60, seed), classes=4)
    queries, _ = clusters(30, seed + 1)
    theirs = classifier(bank, k, temperature)
    votes = knn_votes(bank, queries, [k], temperature, CPU)[k]
    np.testing.assert_allclose(votes, theirs.predict_proba(queries.double()), atol=1e-4)
    predicted = knn_predict(bank, queries, [k], temperature, CPU)[k]
    assert predicted.tolist() == theirs.predict(queries.double()).tolist()


def test_neighbours_are_scikit_learns() -> None:
    (gallery, _), (queries, _) = clusters(60, 0), clusters(30, 1)
    found = list(nearest(gallery, queries, 7, CPU))
    cosines, rows = (torch.cat(side) for side in zip(*found, strict=True))
    theirs = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute")
    distances, indices = theirs.fit(gallery.double()).kneighbors(queries.double())
    assert rows.tolist() == indices.tolist()
    np.testing.assert_allclose(1 - cosines, distances, atol=1e-5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, (queries, _) = Bank(*clusters(101, 0), classes=4), clusters(37, 1)
    whole = knn_predict(bank, queries, [1, 5, 20], 0.07, CPU)
    monkeypatch.setattr(neighbours, "_QUERIES", 8)
    monkeypatch.setattr(neighbours, "_GALLERY", 13)
    pieces = knn_predict(bank, queries, [1, 5, 20], 0.07, CPU)
    assert {k: v.tolist() for k, v in pieces.items()} == {k: v.tolist() for k, v in whole.items()}


def test_a_tiny_temperature_is_the_nearest_neighbour() -> None:
    bank, (queries, _) = Bank(*clusters(50, 0), classes=4), clusters(20, 1)
    nearest_one = knn_predict(bank, queries, [1], 0.07, CPU)[1]
    assert knn_predict(bank, queries, [9], 1e-5, CPU)[9].tolist() == nearest_one.tolist()


def test_rows_that_count_as_absent_are_as_if_they_were_not_there() -> None:
    (vectors, labels), (queries, _) = clusters(60, 0), clusters(20, 1)
    absent = torch.tensor([0, 7, 8, 59])
    rest = torch.tensor([row for row in range(60) if row not in absent.tolist()])
    without = knn_votes(Bank(vectors, labels, 4, without=absent), queries, [3, 56], 0.07, CPU)
    alone = knn_votes(Bank(vectors[rest], labels[rest], 4), queries, [3, 56], 0.07, CPU)
    for k in (3, 56):
        torch.testing.assert_close(without[k], alone[k])
