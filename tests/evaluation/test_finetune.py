"""Fine-tuning as a protocol: what it measures, beside what, and on which labels."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mae.data.loading.batch import Batch
from mae.errors import DataError, ParamsError
from mae.evaluation import finetune
from mae.evaluation.classification import ClassificationTask
from mae.training.devices import Place

PLACE = Place(torch.device("cpu"))
NOWHERE = Path("nowhere")  # fine-tuning draws no picture

FAST: dict[str, Any] = {
    "budgets": [
        {"labels_per_class": 2, "epochs": 3, "seeds": 2},
        {"labels_per_class": None, "epochs": 1, "seeds": 2},
    ],
    "batch": 32,
}


def without_times(detail: Any) -> Any:
    if isinstance(detail, dict):
        return {key: without_times(value) for key, value in detail.items() if key != "seconds"}
    return [without_times(one) for one in detail] if isinstance(detail, list) else detail


def test_measures_digits_the_same_each_time(digit_shards, tiny_encoder, make_params) -> None:
    params = make_params(finetune=FAST)
    first = finetune.run(params, digit_shards, tiny_encoder, PLACE, NOWHERE)
    again = finetune.run(params, digit_shards, tiny_encoder, PLACE, NOWHERE)
    assert first.numbers == again.numbers and first.comparisons == again.comparisons
    assert without_times(first.detail) == without_times(again.detail)
    arms = [f"{arm}_{budget}" for arm in ("accuracy", "gain") for budget in ("2_per_class", "all")]
    scratch = ["accuracy_2_per_class_scratch", "accuracy_all_scratch"]
    names = arms + scratch
    assert set(first.numbers) == {*names, *(f"{name}_std" for name in names)}
    described = first.detail["2_per_class"]["arms"]
    runs = {arm: described[arm]["runs"] for arm in ("pretrained", "scratch")}
    assert [run["labels"] for run in runs["pretrained"]] == [20, 20]
    warm, cold = ([run["top1"] for run in runs[arm]] for arm in ("pretrained", "scratch"))
    gains = [one - other for one, other in zip(warm, cold, strict=True)]
    assert first.numbers["gain_2_per_class"] == pytest.approx(sum(gains) / 2)
    few, everything = first.comparisons
    assert (few.task, everything.task) == (
        "Fine-tuning, 2 labels per class",
        "Fine-tuning, all labels",
    )
    assert few.pretrained == tuple(warm) and few.values == tuple(cold)
    assert few.baseline == "from scratch" and few.paired and few.deciding and few.images == 120
    assert first.detail["all"]["arms"]["scratch"]["runs"][0]["labels"] == 360
    low, high = described["pretrained"]["interval"]
    assert low <= first.numbers["accuracy_2_per_class"] <= high


def test_all_arms_see_the_same_batches_and_seeds_differ(
    digit_shards, tiny_encoder, make_params, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    forward = ClassificationTask.forward

    def watched(task: ClassificationTask, batch: Batch, epoch: int) -> Any:
        seen.append(batch.images)
        return forward(task, batch, epoch)

    monkeypatch.setattr(ClassificationTask, "forward", watched)
    budgets = [{"labels_per_class": 2, "epochs": 2, "seeds": 2}]
    params = make_params(finetune=FAST | {"budgets": budgets})
    finetune.run(params, digit_shards, tiny_encoder, PLACE, NOWHERE)
    assert len(seen) == 2 * 2 * 2  # arms x seeds x steps
    for step in range(4):
        assert torch.equal(seen[step], seen[step + 4])
    assert not torch.equal(seen[0], seen[2])


def test_learns_what_is_easily_told_apart(make_shards, tiny_encoder, make_params) -> None:
    shards = make_shards({split: {"a": 30, "b": 30} for split in ("train", "val", "test")})
    budgets = [{"labels_per_class": 20, "epochs": 20, "seeds": 1}]
    params = make_params(finetune=FAST | {"budgets": budgets, "blr": [1e-2]})
    numbers = finetune.run(params, shards, tiny_encoder, PLACE, NOWHERE).numbers
    assert numbers["accuracy_20_per_class"] > 0.9
    assert numbers["accuracy_20_per_class_scratch"] > 0.9


def test_a_baseline_learns_from_the_same_labels(
    digit_shards, tiny_encoder, make_params, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(finetune=FAST | {"budgets": FAST["budgets"][:1]})
    named = params.evaluate.model_copy(update={"baselines": {"twin": str(tiny_encoder)}})
    params = params.model_copy(update={"evaluate": named})
    outcome = finetune.run(params, digit_shards, tiny_encoder, PLACE, NOWHERE)
    # The same weights under the same recipe reach the same.
    assert outcome.numbers["accuracy_2_per_class_twin"] == outcome.numbers["accuracy_2_per_class"]
    beside = {one.baseline: one.deciding for one in outcome.comparisons}
    assert beside == {"from scratch": True, "twin": False}


def test_frozen_blocks_stay_as_they_were_but_not_from_scratch(
    digit_shards, tiny_encoder, make_params, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[ClassificationTask] = []
    made = ClassificationTask.__init__

    def watched(task: ClassificationTask, *args: Any) -> None:
        made(task, *args)
        tasks.append(task)

    monkeypatch.setattr(ClassificationTask, "__init__", watched)
    budgets = [{"labels_per_class": 1, "epochs": 1, "seeds": 1}]
    params = make_params(finetune=FAST | {"budgets": budgets, "freeze_blocks": 1})
    finetune.run(params, digit_shards, tiny_encoder, PLACE, NOWHERE)
    frozen = [[n for n, p in t.named_parameters() if not p.requires_grad] for t in tasks]
    assert {name.split(".")[3] for name in frozen[0] if "blocks" in name} == {"0"}
    assert "classifier.encoder.patch_embed.weight" in frozen[0] and frozen[1] == []


def test_freezing_all_blocks_is_refused_in_words(digit_shards, tiny_encoder, make_params) -> None:
    params = make_params(finetune=FAST | {"freeze_blocks": 2})
    with pytest.raises(ParamsError, match="leaves none of the encoder's 2 blocks"):
        finetune.run(params, digit_shards, tiny_encoder, PLACE, NOWHERE)


def test_a_budget_beyond_the_labels_is_refused_before_training(
    make_shards, tiny_encoder, make_params, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"a": 5, "b": 3}
    shards = make_shards({"train": counts, "val": counts, "test": counts})
    budgets = [{"labels_per_class": n, "epochs": 1, "seeds": 1} for n in (2, 4)]
    monkeypatch.setattr(ClassificationTask, "forward", lambda *_: pytest.fail("trained"))
    params = make_params(finetune={"budgets": budgets})
    with pytest.raises(DataError, match="class 'b' has 3 labelled images"):
        finetune.run(params, shards, tiny_encoder, PLACE, NOWHERE)
    single = {"budgets": [{"labels_per_class": 1, "epochs": 1, "seeds": 1}], "blr": [1e-3, 1e-2]}
    with pytest.raises(ParamsError, match="one label per class leaves none to choose"):
        finetune.run(make_params(finetune=single), shards, tiny_encoder, PLACE, NOWHERE)


def test_no_labels_is_skipped_in_words(make_shards, tiny_encoder, make_params) -> None:
    shards = make_shards({split: {"": 3} for split in ("train", "val", "test")})
    outcome = finetune.run(make_params(), shards, tiny_encoder, PLACE, NOWHERE)
    assert outcome.numbers == {} and "no labels" in (outcome.skipped or "")
