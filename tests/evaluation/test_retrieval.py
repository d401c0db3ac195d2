"""Retrieval beside scikit-learn's precision and neighbours, and where labels are missing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from mae.errors import DataError
from mae.evaluation import retrieval
from mae.evaluation.arms import frozen_arms
from mae.evaluation.outcome import Outcome
from mae.evaluation.retrieval import retrieve
from mae.model.artifact import load_encoder
from mae.params import Params
from mae.training.devices import Place
from tests.evaluation.side_by_side import side_by_side

CPU = torch.device("cpu")
PLACE = Place(CPU)


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Vectors around four corners that overlap, of uneven length, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    points = torch.eye(8)[labels] + torch.randn(count, 8, generator=generator)
    return points * (1 + torch.rand(count, 1, generator=generator)), labels


@given(seed=st.integers(0, 10_000), images=st.integers(8, 60))
@settings(max_examples=25, deadline=None)
def test_agrees_with_scikit_learn(seed: int, images: int) -> None:
    gallery, labels = clusters(images, seed)
    queries, wanted = clusters(9, seed + 1)
    ks = [1, 3, 8]
    found, precision = retrieve(gallery, labels, queries, wanted, ks, CPU)
    scores = cosine_similarity(queries.double(), gallery.double())
    expected = [
        average_precision_score(labels == label, row)
        for label, row in zip(wanted, scores, strict=True)
    ]
    np.testing.assert_allclose(precision, expected, rtol=1e-6)
    neighbours = NearestNeighbors(n_neighbors=8, metric="cosine").fit(gallery.double())
    rows = neighbours.kneighbors(queries.double(), return_distance=False)
    right = labels.numpy()[rows] == wanted.numpy()[:, None]
    assert found.tolist() == [[bool(line[:k].any()) for k in ks] for line in right]


def test_equally_similar_images_count_alike() -> None:
    """Where all features are the same, precision is that of drawing blindly, in any order."""
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    same, query = torch.ones(8, 3), torch.ones(2, 3)
    for order in (torch.arange(8), torch.arange(7, -1, -1)):
        _, precision = retrieve(same, labels[order], query, torch.tensor([0, 1]), [1], CPU)
        assert precision.tolist() == [0.25, 0.75]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, labels = clusters(53, 0)
    queries, wanted = clusters(17, 1)
    whole = retrieve(gallery, labels, queries, wanted, [1, 4], CPU)
    monkeypatch.setattr(retrieval, "_SIMILARITIES", 53 * 3)
    monkeypatch.setattr(retrieval, "_GALLERY", 7)
    pieces = retrieve(gallery, labels, queries, wanted, [1, 4], CPU)
    assert torch.equal(whole[0], pieces[0])
    torch.testing.assert_close(whole[1], pieces[1])


def test_the_best_order_is_one_and_the_worst_known() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([0, 0, 1])
    found, precision = retrieve(gallery, labels, query, torch.tensor([0, 1]), [1, 3], CPU)
    assert precision.tolist() == pytest.approx([1.0, 1 / 3])
    assert found.tolist() == [[True, True], [False, True]]


# --- the protocol ----------------------------------------------------------------------------


def measure(
    params: Params, shards: Path, encoder: Path, pictures: Path, place: Place = PLACE
) -> Outcome:
    pictures.mkdir(exist_ok=True)
    return retrieval.run(params, shards, encoder, place, pictures)


def test_digits_are_measured_compared_and_drawn(
    digit_shards, tiny_encoder, make_params, tmp_path: Path
) -> None:
    params = make_params()
    outcome = measure(params, digit_shards, tiny_encoder, tmp_path / "one")
    names = ["map", "recall_at_1", "recall_at_5", "recall_at_10"]
    assert set(outcome.numbers) == {
        f"{name}{arm}" for name in names for arm in ("", "_random", "_pixels")
    }
    assert 0.1 < outcome.numbers["map_pixels"] < outcome.numbers["recall_at_5_pixels"] <= 1
    assert [one.baseline for one in outcome.comparisons] == ["random encoder", "raw pixels"]
    assert outcome.comparisons[1].values == (outcome.numbers["map_pixels"],)
    assert outcome.comparisons[0].images == 120 and not outcome.comparisons[0].deciding
    with Image.open(tmp_path / "one" / "neighbours.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(1 << 24) or []) > 50
    again = measure(params, digit_shards, tiny_encoder, tmp_path / "two")
    assert again == outcome
    first, second = ((tmp_path / n / "neighbours.png").read_bytes() for n in ("one", "two"))
    assert first == second


def test_several_processes_find_the_same(
    digit_shards, tiny_encoder, make_params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """120 queries, which seven processes cannot share evenly."""
    params = make_params()
    arms = frozen_arms(params, load_encoder(tiny_encoder), pixels=True)
    monkeypatch.setattr(retrieval, "frozen_arms", lambda *_, **__: arms)
    alone = measure(params, digit_shards, tiny_encoder, tmp_path / "alone")

    def one_of_many(place: Place) -> Outcome:
        return measure(params, digit_shards, tiny_encoder, tmp_path / str(place.rank), place)

    outcomes = side_by_side(7, one_of_many)
    for outcome in outcomes:
        assert outcome.numbers == pytest.approx(alone.numbers, rel=1e-12)
        assert outcome == outcomes[0]
    drawn = sorted(path.parent.name for path in tmp_path.rglob("neighbours.png"))
    assert drawn == ["0", "alone"]


def test_without_labels_neighbours_are_drawn_all_the_same(
    make_shards, tiny_encoder, make_params, tmp_path: Path
) -> None:
    shards = make_shards({"train": {"": 9}, "val": {"": 2}, "test": {"": 3}})
    outcome = measure(make_params(), shards, tiny_encoder, tmp_path / "pictures")
    assert outcome.numbers == {} and outcome.skipped is not None
    assert "no labels" in outcome.skipped and "neighbours.png" in outcome.skipped
    assert (tmp_path / "pictures" / "neighbours.png").is_file()


def test_nothing_is_drawn_where_nothing_is_to_be_shown(
    make_shards, tiny_encoder, make_params, tmp_path: Path
) -> None:
    shards = make_shards({"train": {"": 9}, "val": {"": 2}, "test": {"": 3}})
    params = make_params(retrieval={"shown": 0})
    outcome = measure(params, shards, tiny_encoder, tmp_path / "pictures")
    assert outcome.skipped is not None and "png" not in outcome.skipped
    assert not (tmp_path / "pictures" / "neighbours.png").exists()


def test_too_many_neighbours_are_left_out_or_refused(
    make_shards, tiny_encoder, make_params, tmp_path: Path
) -> None:
    counts = {"a": 3, "b": 3}
    shards = make_shards({"train": counts, "val": counts, "test": counts})
    outcome = measure(make_params(retrieval={"k": [1, 7]}), shards, tiny_encoder, tmp_path / "p")
    assert "recall_at_1" in outcome.numbers and "recall_at_7" not in outcome.numbers
    assert outcome.detail["remarks"] == ["k of 7 is left out: the gallery has 6 images."]
    with pytest.raises(DataError, match=r"retrieval.k asks for 7 neighbours .* has 6 labelled"):
        measure(make_params(retrieval={"k": [7, 9]}), shards, tiny_encoder, tmp_path / "p")


def test_an_encoder_for_other_images_is_refused(
    digit_shards, make_encoder, make_params, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="takes images of 3 channels"):
        measure(make_params(), digit_shards, make_encoder(3, 8), tmp_path / "p")
