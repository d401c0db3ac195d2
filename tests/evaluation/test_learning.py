"""The run that fine-tuning, partial fine-tuning and adapters share, and the choice of its rate."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from mae.data.loading.augment import AugmentedBatch
from mae.data.loading.batch import Batch
from mae.errors import DivergedError
from mae.evaluation import budgets
from mae.evaluation.budgets import drawn, measure
from mae.evaluation.classification import ClassificationTask
from mae.evaluation.labelled import labelled_split, train_and_test
from mae.evaluation.learning import (
    Learned,
    LearningArm,
    Setting,
    learning_arm,
    learning_arms,
    make_task,
    predict,
    train_and_score,
)
from mae.evaluation.scores import measure_predicted, measure_scores
from mae.model.artifact import load_encoder
from mae.model.freezing import learn_only
from mae.model.heads import Classifier
from mae.params import LabelBudget, Params
from mae.training.devices import Place, joined
from tests.ports import free_port

PLACE = Place(torch.device("cpu"))
BUDGET = LabelBudget(labels_per_class=3, epochs=2, seeds=2)


@pytest.fixture
def params(make_params) -> Params:
    return make_params(finetune={"batch": 16})


@pytest.fixture
def setting(params: Params, digit_shards: Path) -> Setting:
    train, test = train_and_test(digit_shards)
    return Setting(params, train, test, train.reader.info.classes, PLACE)


@pytest.fixture
def arm(params: Params, tiny_encoder: Path) -> LearningArm:
    return learning_arm(params, "pretrained", load_encoder(tiny_encoder))


def small_task(tiny_encoder: Path, classes: int = 4, **changes: Any) -> ClassificationTask:
    artifact = load_encoder(tiny_encoder)
    classifier = Classifier(artifact.encoder, classes, "mean", init_std=1.0, seed=0)
    settings = {"layer_decay": 0.5, "label_smoothing": 0.1, "seed": 0} | changes
    return ClassificationTask(classifier, artifact.statistics, **settings).eval()


def some_images(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 24, 24), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % 4


def test_the_loss_is_cross_entropy_with_smoothed_labels(tiny_encoder) -> None:
    task = small_task(tiny_encoder, label_smoothing=0.2)
    images, labels = some_images(5)
    log_odds = task.classifier(task.normalize(images)).log_softmax(dim=1)
    target = torch.full((5, 4), 0.2 / 4).scatter(1, labels[:, None], 0.8 + 0.2 / 4)
    loss, _ = task(Batch(images, torch.arange(5), labels), 0)
    torch.testing.assert_close(loss, -(target * log_odds).sum(dim=1).mean())


def as_augmented(images: Tensor, labels: Tensor, **changes: Tensor) -> AugmentedBatch:
    nothing: dict[str, Tensor] = {
        "erased": torch.zeros(0, dtype=torch.int64),
        "erased_boxes": torch.zeros(0, 4, dtype=torch.int64),
        "shares": torch.ones(len(images)),
        "boxes": torch.zeros(len(images), 4, dtype=torch.int64),
    }
    return AugmentedBatch(images, torch.arange(len(images)), labels, **(nothing | changes))


def test_mixed_batches_learn_mixed_labels(tiny_encoder) -> None:
    task = small_task(tiny_encoder)
    images, labels = some_images(4)
    plain, _ = task(Batch(images, torch.arange(4), labels), 0)
    torch.testing.assert_close(task(as_augmented(images, labels), 0)[0], plain)
    shares = torch.full((4,), 0.25)
    loss, _ = task(as_augmented(images, labels, shares=shares), 0)
    normal, partner = task.normalize(images), torch.tensor([1, 0, 3, 2])
    log_odds = task.classifier(0.25 * normal + 0.75 * normal[partner]).log_softmax(dim=1)
    exact = torch.nn.functional.one_hot(labels, 4) * 0.9 + 0.1 / 4
    target = 0.25 * exact + 0.75 * exact[partner]
    torch.testing.assert_close(loss, -(target * log_odds).sum(dim=1).mean())


def test_erasing_replaces_pixels_by_noise_of_the_image_and_epoch(tiny_encoder) -> None:
    task = small_task(tiny_encoder)
    images, labels = some_images(4)
    box = torch.tensor([[0, 24, 0, 24]])
    batch = as_augmented(images, labels, erased=torch.tensor([2]), erased_boxes=box)
    first = task._augmented(task.normalize(images), batch, epoch=0)
    assert torch.equal(first[:2], task.normalize(images)[:2])
    assert abs(first[2].mean()) < 0.2 and abs(first[2].std() - 1) < 0.1
    assert torch.equal(first, task._augmented(task.normalize(images), batch, epoch=0))
    assert not torch.equal(first[2], task._augmented(task.normalize(images), batch, epoch=1)[2])


def test_from_scratch_starts_elsewhere_without_layer_decay(params, setting, tiny_encoder) -> None:
    artifact = load_encoder(tiny_encoder)
    arms = learning_arms(params, artifact)
    assert list(arms) == ["pretrained", "scratch"]
    warm, cold = (make_task(setting, arms[name], 0) for name in ("pretrained", "scratch"))
    assert cold.layer_decay == 1.0 and warm.layer_decay == 0.75
    own = artifact.encoder.state_dict()
    assert all(torch.equal(own[n], w) for n, w in warm.classifier.encoder.state_dict().items())
    assert warm.classifier.encoder is not artifact.encoder
    assert warm.classifier.head.weight.std() < 1e-4 < 0.01 < cold.classifier.head.weight.std()
    weight = cold.classifier.encoder.patch_embed.weight
    other = make_task(setting, arms["scratch"], 1).classifier.encoder.patch_embed.weight
    assert not torch.equal(weight, artifact.encoder.patch_embed.weight)
    assert not torch.equal(weight, other)
    assert {group["lr_scale"] for group in cold.parameter_groups(0.0)} == {1.0}
    assert {group["lr_scale"] for group in warm.parameter_groups(0.0)} == {
        0.75**layer for layer in range(4)
    }


def test_what_is_frozen_does_not_drop_paths(setting, arm) -> None:
    def head_and_last_block(classifier: Classifier) -> None:
        last = classifier.encoder.blocks[-1].parameters()
        learn_only(classifier, [*last, *classifier.head.parameters()])

    params = setting.params.evaluate.finetune.model_copy(update={"drop_path": 0.5})
    evaluate = setting.params.evaluate.model_copy(update={"finetune": params})
    changed = setting.params.model_copy(update={"evaluate": evaluate})
    task = make_task(dataclasses.replace(setting, params=changed), arm, 0, head_and_last_block)
    rates = [
        getattr(block.drop_path1, "drop_prob", 0.0) for block in task.classifier.encoder.blocks
    ]
    assert rates == [0.0, 0.5]


# --- the full recipe ----------------------------------------------------------------------------

EVERYTHING = {
    "crop_area": [0.6, 1.0], "crop_aspect": [0.75, 1.333], "flip": True,
    "randaugment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "erasing": 0.25,
}  # fmt: skip


def test_the_whole_recipe_learns_and_repeats_with_any_number_of_threads(
    make_params, digit_shards, tiny_encoder
) -> None:
    params = make_params(finetune={"batch": 16, "augment": EVERYTHING})
    train, test = train_and_test(digit_shards)
    found = []
    for workers in (1, 3):
        runtime = params.runtime.model_copy(update={"workers": workers})
        changed = params.model_copy(update={"runtime": runtime})
        setting = Setting(changed, train, test, train.reader.info.classes, PLACE)
        arm = learning_arm(changed, "pretrained", load_encoder(tiny_encoder))
        split = drawn(setting, BUDGET, 0)
        optim = changed.evaluate.finetune.optim(BUDGET, 1e-2)
        found.append(train_and_score(setting, arm, split.positions, optim, seed=0))
    assert found[0].scores == found[1].scores
    assert found[0].labels == 30


# --- the choice of a rate -----------------------------------------------------------------------


def fake_run(accuracy: float, setting: Setting) -> Learned:
    labels = torch.zeros(1000, dtype=torch.int64)
    predicted = (torch.arange(1000) >= round(1000 * accuracy)).long()
    classes = len(setting.classes)
    return Learned(0, 30, measure_predicted(predicted, labels, classes), 0.0, 1)


def choose(
    setting: Setting,
    arm: LearningArm,
    monkeypatch: pytest.MonkeyPatch,
    on_minival: dict[float, Any],
) -> tuple[Any, list[dict[str, Any]]]:
    calls: list[dict[str, Any]] = []

    def run(*arguments: Any, adapt: Any = None, test: Any = None) -> Learned:
        _, _, positions, optim, seed = arguments
        calls.append({"positions": positions, "blr": optim.blr, "seed": seed, "test": test})
        if test is None:
            return fake_run(0.5, setting)
        accuracy = on_minival[optim.blr]
        if accuracy is None:
            raise DivergedError("not a number")
        return fake_run(accuracy, setting)

    monkeypatch.setattr(budgets, "train_and_score", run)
    return measure(setting, arm, BUDGET, list(on_minival)), calls


def test_the_rate_is_chosen_within_the_labels_drawn_and_test_is_read_once(
    setting, arm, monkeypatch
) -> None:
    measured, calls = choose(setting, arm, monkeypatch, {1e-3: 0.5, 1e-2: 0.7, 1e-1: None})
    assert measured.blr == 1e-2
    assert measured.tried == {1e-3: pytest.approx(0.5), 1e-2: pytest.approx(0.7), 1e-1: None}
    final = [call for call in calls if call["test"] is None]
    assert [(call["blr"], call["seed"]) for call in final] == [(1e-2, 0), (1e-2, 1)]
    for call in calls:
        labels = drawn(setting, BUDGET, call["seed"]).positions
        if call["test"] is None:
            assert torch.equal(call["positions"], labels)
            continue
        both = torch.cat([call["positions"], call["test"].positions]).sort().values
        assert torch.equal(both, labels) and call["test"].name == "train"
        assert len(call["test"]) == 10  # one of each class


def test_of_equal_rates_the_lowest_and_of_none_an_error(setting, arm, monkeypatch) -> None:
    assert choose(setting, arm, monkeypatch, {1e-1: 0.5, 1e-2: 0.5})[0].blr == 1e-2
    with pytest.raises(DivergedError, match=r"diverges at every rate of 0\.1, 1:"):
        choose(setting, arm, monkeypatch, {0.1: None, 1.0: None})


def test_a_single_rate_is_not_chosen(setting, arm, monkeypatch) -> None:
    measured, calls = choose(setting, arm, monkeypatch, {0.3: None})
    assert measured.blr == 0.3 and measured.tried == {}
    assert all(call["test"] is None for call in calls)


def test_labels_drawn_are_a_part_of_train_with_their_labels(setting) -> None:
    split = drawn(setting, BUDGET, 1)
    assert torch.equal(split.labels, setting.train.reader.labels[split.positions])
    assert torch.equal(split.labels.bincount(), torch.full((10,), 3))
    everything = drawn(setting, LabelBudget(labels_per_class=None, epochs=1, seeds=1), 0)
    assert torch.equal(everything.positions, setting.train.positions)


# --- several processes --------------------------------------------------------------------------


def logits_of(shards: Path, encoder: Path, params: Params, place: Place) -> Tensor:
    test = labelled_split(shards, "test")
    setting = Setting(params, test, test, test.reader.info.classes, place)
    task = small_task(encoder, len(setting.classes))
    return predict(task, test, 1.0, setting, "fp32")


def run_both(rank: int, world: int, port: int, shards: Path, encoder: Path, params: Params,
             folder: Path) -> None:  # fmt: skip
    import os

    from mae.evaluation import learning

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    learning.EVALUATION_BATCH = 32  # so that there are batches to share
    with joined("cpu") as place:
        logits = logits_of(shards, encoder, params, place)
        train, test = train_and_test(shards)
        setting = Setting(params, train, test, train.reader.info.classes, place)
        arm = learning_arm(params, "pretrained", load_encoder(encoder))
        # 30 labels divide by two processes, the 25 do not: one batch of 24 is made of them.
        optim = params.evaluate.finetune.optim(BUDGET, 1e-2)
        positions = drawn(setting, BUDGET, 0).positions
        runs = [
            train_and_score(setting, arm, positions[:count], optim, seed=0) for count in (30, 25)
        ]
    torch.save((logits, [run.scores for run in runs]), folder / f"{rank}.pt")


def test_two_processes_answer_as_one(
    make_params, digit_shards, tiny_encoder, tmp_path, monkeypatch
) -> None:

    from mae.evaluation import learning

    params = make_params(finetune={"batch": 30, "precision": "fp32", "drop_path": 0.0})
    port = free_port()
    arguments = (2, port, digit_shards, tiny_encoder, params, tmp_path)
    mp.spawn(run_both, arguments, nprocs=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(learning, "EVALUATION_BATCH", 32)
    try:
        alone = logits_of(digit_shards, tiny_encoder, params, PLACE)
    finally:
        torch.set_num_threads(threads)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    # 120 images in batches of 32: four, the last one ragged.
    assert len(alone) == 120 and len(alone) % 32
    assert torch.equal(first[0], second[0])
    # Matrix products may round otherwise where the memory lies otherwise.
    torch.testing.assert_close(first[0], alone, rtol=1e-5, atol=1e-5)
    labels = labelled_split(digit_shards, "test").labels
    assert measure_scores(first[0], labels).top1 == measure_scores(alone, labels).top1
    assert first[1] == second[1]
    assert all(0 <= scores.top1 <= 1 and math.isfinite(scores.balanced) for scores in first[1])
