import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from mae.errors import DataError
from mae.evaluation import label_budget
from mae.evaluation.arms import frozen_arms
from mae.evaluation.feature_cache import features_of
from mae.evaluation.label_budget import draw_share
from mae.evaluation.labelled import train_and_test
from mae.evaluation.outcome import Outcome
from mae.model.artifact import load_encoder
from mae.params import Params
from mae.training.devices import Place

HERE = Place(torch.device("cpu"))
FEW = 19  # 5 % of each class of the 360 digits, rounded


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def budget(make_params) -> Params:
    return make_params(
        label_budget={
            "shares": [1.0, 0.05],
            "protocols": ["knn", "logistic", "finetune"],
            "seeds": 2,
            "steps": 4,
        },
        finetune={"batch": 20},
    )


@pytest.fixture(scope="module")
def outcome(digit_shards, tiny_encoder, budget, pictures) -> Outcome:
    return label_budget.run(budget, digit_shards, tiny_encoder, HERE, pictures)


def test_draws_are_stratified_nested_and_of_the_seed(digit_shards) -> None:
    train, _ = train_and_test(digit_shards)
    present = torch.bincount(train.labels)
    drawn = {share: draw_share(train, share, seed=3) for share in (0.001, 0.1, 0.5, 1.0)}
    assert torch.bincount(train.labels[drawn[0.001]]).tolist() == [1] * 10
    for share in (0.1, 0.5):
        wanted = [max(1, round(share * int(count))) for count in present]
        assert torch.bincount(train.labels[drawn[share]]).tolist() == wanted
    assert set(drawn[0.001].tolist()) < set(drawn[0.1].tolist()) < set(drawn[0.5].tolist())
    assert torch.equal(drawn[1.0], torch.arange(len(train)))
    assert torch.equal(drawn[0.1], draw_share(train, 0.1, seed=3))
    assert not torch.equal(drawn[0.1], draw_share(train, 0.1, seed=4))


def test_every_protocol_share_and_arm_is_measured(outcome) -> None:
    for protocol, baselines in (
        ("knn", ("random", "pixels")),
        ("logistic", ("random", "pixels")),
        ("finetune", ("scratch",)),
    ):
        for suffix in ("", *(f"_{name}" for name in baselines)):
            for share in ("5", "100"):
                assert 0 <= outcome.numbers[f"accuracy_{protocol}_{share}_percent{suffix}"] <= 1
        for arm in ("pretrained", *baselines):
            few, everything = outcome.detail[protocol][arm]
            assert (few["share"], everything["share"]) == (0.05, 1.0)
            assert everything["labels"] == 360 and few["labels"] == FEW
            assert len(few["accuracies"]) == 2 and few["seconds"] > 0
            # What leaves nothing to chance is not run twice.
            assert len(everything["accuracies"]) == (2 if protocol == "finetune" else 1)
    assert outcome.detail["images"] == {"train": 360, "test": 120}


def test_more_labels_help_the_pixels(outcome) -> None:
    few, everything = outcome.detail["knn"]["pixels"]
    assert everything["mean"] > few["mean"] + 0.1


def test_the_verdict_is_a_sentence_of_the_smallest_share(outcome) -> None:
    verdict = outcome.detail["verdict"]
    assert verdict.startswith(
        f"With 5 % of the labels ({FEW}) fine-tuning on the pretrained encoder"
    )
    assert verdict.endswith(".")


def test_comparisons_of_frozen_and_of_learning_encoders(outcome) -> None:
    assert {(one.task.split(",")[0], one.baseline) for one in outcome.comparisons} == {
        ("Fine-tuning", "from scratch"),
        *(
            (task, name)
            for task in ("Logistic regression", "K-NN")
            for name in ("random encoder", "raw pixels")
        ),
    }


def test_the_table_and_the_picture_are_there(outcome, pictures) -> None:
    with (pictures / "label_budget.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (3 + 3 + 2)
    row = next(row for row in rows if row["protocol"] == "knn" and row["arm"] == "pixels")
    few = outcome.detail["knn"]["pixels"][0]
    assert float(row["accuracy"]) == pytest.approx(few["mean"], abs=1e-6)
    assert (int(row["labels"]), int(row["runs"])) == (FEW, 2)
    assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
    with Image.open(pictures / "label_budget.png") as picture:
        assert picture.width > picture.height > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_the_numbers_are_the_same_each_time(
    outcome, digit_shards, tiny_encoder, budget, tmp_path
) -> None:
    again = label_budget.run(budget, digit_shards, tiny_encoder, HERE, tmp_path)
    assert again.numbers == outcome.numbers and again.comparisons == outcome.comparisons
    assert again.detail["verdict"] == outcome.detail["verdict"]


def test_a_few_labels_do_for_classes_without_many(
    make_shards, tiny_encoder, make_params, tmp_path
) -> None:
    counts = {"a": 6, "b": 2}
    shards = make_shards({"train": counts, "val": counts, "test": counts})
    params = make_params(
        label_budget={"shares": [0.01, 1.0], "protocols": ["knn", "logistic"], "seeds": 2}
    )
    measured = label_budget.run(params, shards, tiny_encoder, HERE, tmp_path)
    assert [point["labels"] for point in measured.detail["knn"]["pixels"]] == [2, 8]


def test_no_labels_is_skipped_in_words(make_shards, tiny_encoder, make_params, tmp_path) -> None:
    shards = make_shards({split: {"": 3} for split in ("train", "val", "test")})
    skipped = label_budget.run(make_params(), shards, tiny_encoder, HERE, tmp_path)
    assert skipped.numbers == {} and "no labels" in (skipped.skipped or "")
    assert not list(tmp_path.glob("label_budget*"))


def test_a_class_that_train_lacks_is_refused(
    make_shards, tiny_encoder, make_params, tmp_path
) -> None:
    shards = make_shards({"train": {"a": 3, "b": 3}, "test": {"a": 2, "b": 2, "c": 2}})
    with pytest.raises(DataError, match="'c'"):
        label_budget.run(make_params(), shards, tiny_encoder, HERE, tmp_path)


def test_frozen_classifiers_equal_scikit_learns(
    outcome, digit_shards, tiny_encoder, budget
) -> None:
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler, normalize

    train, test = train_and_test(digit_shards)
    arm = frozen_arms(budget, load_encoder(tiny_encoder), pixels=True)["pixels"]
    known, queries = (
        features_of(arm, split, "mean", budget, HERE).double().numpy() for split in (train, test)
    )
    rows = draw_share(train, 0.05, seed=1)
    knn = KNeighborsClassifier(10, weights=lambda far: np.exp((1 - far**2 / 2) / 0.07))
    knn.fit(normalize(known[rows]), train.labels[rows])
    scaler = StandardScaler().fit(known[rows])
    linear = LogisticRegression(C=1.0, max_iter=2000, tol=1e-8)
    linear.fit(scaler.transform(known[rows]), train.labels[rows])
    expected = {
        "knn": knn.score(normalize(queries), test.labels),
        "logistic": linear.score(scaler.transform(queries), test.labels),
    }
    for protocol, accuracy in expected.items():
        few = outcome.detail[protocol]["pixels"][0]
        assert few["accuracies"][1] == pytest.approx(accuracy, abs=1.01 / 120)
