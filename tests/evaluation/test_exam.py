"""The frozen exam: which images it asks, what is left of it, and whether a gain is chance."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from mae.data.dataset import read_dataset_info
from mae.data.manifest import read_manifest
from mae.data.sharding.run import shard_dataset
from mae.errors import DataError
from mae.evaluation import exam as exams
from mae.evaluation.exam import compare, correct, read_exam, set_exam
from mae.files import read_json, write_json
from mae.model.artifact import load_encoder
from mae.training.devices import Place
from tests.small_project import pretrained_project, small_params

CPU = Place(torch.device("cpu"))


def outcomes(only_challenger: int, only_champion: int, both: int) -> tuple:
    ours = [True] * only_challenger + [False] * only_champion + [True] * both
    theirs = [False] * only_challenger + [True] * only_champion + [True] * both
    return torch.tensor(ours), torch.tensor(theirs)


def by(ours, theirs, **changes) -> exams.Difference:
    given = {"margin": 0.0, "confidence": 0.9, "resamples": 4000, "seed": 0, **changes}
    return compare(ours, theirs, **given)


# --- the bootstrap --------------------------------------------------------------------------------


def test_the_interval_is_scipys() -> None:
    ours, theirs = outcomes(30, 18, 152)
    found = by(ours, theirs, resamples=20_000)

    def gain(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
        return one.mean(axis) - other.mean(axis)

    oracle = stats.bootstrap(
        (ours.double().numpy(), theirs.double().numpy()),
        gain,
        paired=True,
        n_resamples=20_000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert found.gain == pytest.approx(12 / 200)
    # Gains are multiples of 1/200, and so is what the two sets of resamples may differ in.
    assert found.low == pytest.approx(oracle.confidence_interval.low, abs=1.01 / 200)
    assert found.high == pytest.approx(oracle.confidence_interval.high, abs=1.01 / 200)
    assert found.win_share == pytest.approx((oracle.bootstrap_distribution > 0).mean(), abs=0.01)


def test_the_share_of_wins_is_the_binomial_one_where_there_are_only_gains() -> None:
    """With 2 gains among 100 images a resample wins unless it draws neither."""
    ours, theirs = outcomes(2, 0, 98)
    found = by(ours, theirs, resamples=20_000)
    assert found.win_share == pytest.approx(1 - 0.98**100, abs=0.01)
    above = by(ours, theirs, resamples=20_000, margin=0.02)
    assert above.win_share == pytest.approx(stats.binom.sf(2, 100, 0.02), abs=0.01)


def test_equals_never_win_and_a_clear_gain_always_does() -> None:
    same = torch.tensor([True, False] * 50)
    assert by(same, same) == exams.Difference(0.0, 0.0, 0.0, 0.0)
    assert by(same, same, margin=-0.01).win_share == 1.0
    assert by(torch.ones(50, dtype=torch.bool), torch.zeros(50, dtype=torch.bool)).win_share == 1.0
    assert by(*outcomes(10, 10, 80)).win_share == pytest.approx(0.46, abs=0.03)


def test_resamples_are_a_function_of_the_seed_and_not_of_memory(monkeypatch) -> None:
    pair = outcomes(12, 9, 179)
    first = by(*pair)
    assert by(*pair, seed=1) != first
    monkeypatch.setattr(exams, "_DRAWS", 999)
    assert by(*pair) == first


# --- the images -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exam")
    pretrained_project(root)
    return root


@pytest.fixture
def paper(project: Path, tmp_path: Path) -> Path:
    path = tmp_path / "exam.json"
    assert set_exam(project / "data/shards/images", path) is None
    return path


def test_it_asks_the_labelled_test_images(project: Path, paper: Path) -> None:
    shards = project / "data/shards/images"
    images = read_json(paper)["images"]
    rows = read_manifest(shards).to_pylist()
    wanted = {row["key"]: row for row in rows if row["accepted"] and row["split"] == "test"}
    assert images == {
        key: {"sha256": row["sha256"], "label": row["label"]} for key, row in wanted.items()
    }
    found = read_exam(shards, paper)
    assert (len(found.test), found.vanished, found.relabelled) == (len(wanted), 0, 0)


def test_it_stays_and_a_large_one_is_a_part_chosen_by_ids(
    project: Path, tmp_path: Path, paper: Path, monkeypatch
) -> None:
    before = paper.read_bytes()
    monkeypatch.setattr(exams, "IMAGES", 4)
    assert set_exam(project / "data/shards/images", paper) is None
    assert paper.read_bytes() == before
    few = tmp_path / "few.json"
    set_exam(project / "data/shards/images", few)
    assert len(read_json(few)["images"]) == 4
    assert read_json(few)["images"].items() <= read_json(paper)["images"].items()


def test_images_that_vanish_or_change_their_label_are_counted(project: Path, paper: Path) -> None:
    content = json.loads(paper.read_text())
    keys = sorted(content["images"])
    content["images"][keys[0]]["sha256"] = "0" * 64
    one = content["images"].pop(keys[1])
    content["images"]["another/name.png"] = one  # renamed: the bytes are what counts
    label = content["images"][keys[2]]["label"]
    content["images"][keys[2]]["label"] = {"dark": "bright", "bright": "dark"}[label]
    write_json(paper, content)
    found = read_exam(project / "data/shards/images", paper)
    assert (found.images, found.vanished, found.relabelled) == (len(keys), 1, 1)
    assert len(found.test) == len(keys) - 2


def test_with_less_than_half_of_it_left_there_is_none(project: Path, paper: Path) -> None:
    content = json.loads(paper.read_text())
    for number, image in enumerate(content["images"].values()):
        if number % 3:
            image["sha256"] = f"{number:064x}"
    write_json(paper, content)
    with pytest.raises(DataError, match="no longer among the test images"):
        read_exam(project / "data/shards/images", paper)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 9, "images": {"a": {}}}', "[]"])
def test_a_damaged_one_is_said(project: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "exam.json"
    path.write_text(text)
    with pytest.raises(DataError, match="no exam"):
        read_exam(project / "data/shards/images", path)


def test_without_labels_there_is_none(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(12):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (16, 24), dtype=np.uint8)).save(buffer, "PNG")
        path = tmp_path / "source" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(buffer.getvalue())
    shards = tmp_path / "shards"
    shard_dataset("images", small_params(tmp_path / "source").data, 0, shards)
    assert "have no labels" in str(set_exam(shards, tmp_path / "exam.json"))
    assert not (tmp_path / "exam.json").exists()


# --- sitting it -----------------------------------------------------------------------------------


def test_answers_are_those_of_a_probe_on_the_features(
    project: Path, paper: Path, tmp_path: Path, monkeypatch
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from mae.data.loading.evaluation import evaluation_batches
    from mae.data.reader import ShardReader
    from mae.evaluation.arms import frozen_arm
    from mae.evaluation.features import Embedder, select

    monkeypatch.chdir(tmp_path)  # where features are kept
    shards, pretrained = project / "data/shards/images", project / "artifacts/pretrain"
    params = small_params(project / "source")
    linear = params.evaluate.linear.model_copy(update={"logistic_c": (1.0,)})
    params = params.model_copy(
        update={"evaluate": params.evaluate.model_copy(update={"linear": linear})}
    )
    found = correct(params, shards, pretrained, read_exam(shards, paper), CPU)

    arm = frozen_arm("pretrained", load_encoder(pretrained))
    sides = []
    for split in ("train", "test"):
        reader = ShardReader(shards, split)
        batches = evaluation_batches(reader, arm, workers=1, batch=256)
        embedder = Embedder(arm, CPU.device)
        vectors = torch.cat([select(embedder(batch.images), arm, "cls") for batch in batches])
        sides.append((vectors.double().numpy(), reader.labels.numpy()))
    (known, labels), (unknown, answers) = sides
    scaler = StandardScaler().fit(known)
    # Of two classes scikit-learn has one row of weights, which pays what two of half do twice.
    oracle = LogisticRegression(C=2.0, max_iter=5000, tol=1e-8)
    oracle.fit(scaler.transform(known), labels)
    assert found.tolist() == (oracle.predict(scaler.transform(unknown)) == answers).tolist()
    assert len(read_dataset_info(shards).classes) == 2
