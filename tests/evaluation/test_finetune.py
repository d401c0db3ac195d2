from typing import Any

import pytest
import torch

from mae.data.loading.batch import Batch
from mae.errors import DataError
from mae.evaluation import finetune
from mae.evaluation.finetune import FinetuneTask
from mae.model.artifact import load_encoder
from mae.model.heads import Classifier

CPU = torch.device("cpu")

FAST = {
    "budgets": [
        {"labels_per_class": 2, "epochs": 3, "seeds": 2},
        {"labels_per_class": None, "epochs": 1, "seeds": 2},
    ],
    "batch": 32,
}


def small_task(tiny_encoder, **changes: Any) -> FinetuneTask:
    artifact = load_encoder(tiny_encoder)
    classifier = Classifier(artifact.encoder, 4, "mean", init_std=2e-5, seed=0)
    settings = {"layer_decay": 0.5, "label_smoothing": 0.1} | changes
    return FinetuneTask(classifier, artifact.statistics, **settings)


def test_measures_digits_the_same_each_time(digit_shards, tiny_encoder, make_params) -> None:
    params = make_params(finetune=FAST)
    first = finetune.run(params, digit_shards, tiny_encoder, CPU)
    assert first == finetune.run(params, digit_shards, tiny_encoder, CPU)
    arms = [f"{arm}_{budget}" for arm in ("accuracy", "gain") for budget in ("2_per_class", "all")]
    scratch = ["accuracy_2_per_class_scratch", "accuracy_all_scratch"]
    names = arms + scratch
    assert set(first.numbers) == {*names, *(f"{name}_std" for name in names)}
    runs = first.detail["2_per_class"]["runs"]
    assert [run["labels"] for run in runs] == [20, 20]
    gains = [run["pretrained"]["top1"] - run["scratch"]["top1"] for run in runs]
    assert first.numbers["gain_2_per_class"] == pytest.approx(sum(gains) / 2)
    assert first.detail["all"]["runs"][0]["labels"] == 360


def test_both_arms_see_the_same_batches_and_seeds_differ(
    digit_shards, tiny_encoder, make_params, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, torch.Tensor]] = []
    forward = FinetuneTask.forward

    def watched(task: FinetuneTask, batch: Batch, epoch: int) -> Any:
        seen.append((id(task), batch.images))
        return forward(task, batch, epoch)

    monkeypatch.setattr(FinetuneTask, "forward", watched)
    budgets = [{"labels_per_class": 2, "epochs": 2, "seeds": 2}]
    params = make_params(finetune=FAST | {"budgets": budgets})
    finetune.run(params, digit_shards, tiny_encoder, CPU)
    assert len(seen) == 2 * 2 * 2  # steps x arms x seeds
    images = [batch for _, batch in seen]
    for first in (0, 4):
        assert torch.equal(images[first], images[first + 2])
        assert torch.equal(images[first + 1], images[first + 3])
    assert not torch.equal(images[0], images[4])


def test_learns_what_is_easily_told_apart(make_shards, tiny_encoder, make_params) -> None:
    shards = make_shards({split: {"a": 30, "b": 30} for split in ("train", "val", "test")})
    budgets = [{"labels_per_class": 20, "epochs": 20, "seeds": 1}]
    params = make_params(finetune=FAST | {"budgets": budgets, "blr": 1e-2})
    numbers = finetune.run(params, shards, tiny_encoder, CPU).numbers
    assert numbers["accuracy_20_per_class"] > 0.9
    assert numbers["accuracy_20_per_class_scratch"] > 0.9


def test_the_loss_is_cross_entropy_with_smoothed_labels(tiny_encoder) -> None:
    task = small_task(tiny_encoder, label_smoothing=0.2).eval()
    torch.nn.init.normal_(task.classifier.head.weight)
    images = torch.randint(0, 256, (5, 1, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 3, 0])
    log_odds = task.classifier(task.normalize(images)).log_softmax(dim=1)
    target = torch.full((5, 4), 0.2 / 4).scatter(1, labels[:, None], 0.8 + 0.2 / 4)
    loss, _ = task(Batch(images, torch.arange(5), labels), 0)
    torch.testing.assert_close(loss, -(target * log_odds).sum(dim=1).mean())


def test_layers_learn_at_their_own_rate_and_all_of_them_learn(tiny_encoder) -> None:
    task = small_task(tiny_encoder, layer_decay=0.5)
    groups = task.parameter_groups(0.05)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    encoder, head = task.classifier.encoder, task.classifier.head
    assert scale[id(head.weight)] == scale[id(encoder.norm.weight)] == 1.0
    assert scale[id(encoder.cls_token)] == scale[id(encoder.patch_embed.weight)] == 0.5**3
    assert len(scale) == len(list(task.parameters()))


def test_from_scratch_starts_elsewhere_without_layer_decay(
    digit_shards, tiny_encoder, make_params
) -> None:
    from mae.evaluation.labelled import train_and_test

    artifact = load_encoder(tiny_encoder)
    train, test = train_and_test(digit_shards)
    classes = train.reader.info.classes
    comparison = finetune.Comparison(make_params(), artifact, train, test, classes, CPU)
    warm, cold = comparison._pretrained(0), comparison._scratch(0)
    assert cold.layer_decay == 1.0 and warm.layer_decay == 0.75
    own = artifact.encoder.state_dict()
    assert all(torch.equal(own[n], w) for n, w in warm.classifier.encoder.state_dict().items())
    assert warm.classifier.encoder is not artifact.encoder
    weight = cold.classifier.encoder.patch_embed.weight
    assert not torch.equal(weight, artifact.encoder.patch_embed.weight)
    assert not torch.equal(weight, comparison._scratch(1).classifier.encoder.patch_embed.weight)


def test_a_budget_beyond_the_labels_is_refused_before_training(
    make_shards, tiny_encoder, make_params, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"a": 5, "b": 3}
    shards = make_shards({"train": counts, "val": counts, "test": counts})
    budgets = [{"labels_per_class": n, "epochs": 1, "seeds": 1} for n in (2, 4)]
    monkeypatch.setattr(FinetuneTask, "forward", lambda *_: pytest.fail("trained"))
    with pytest.raises(DataError, match="class 'b' has 3 labelled images"):
        finetune.run(make_params(finetune={"budgets": budgets}), shards, tiny_encoder, CPU)


def test_no_labels_is_skipped_in_words(make_shards, tiny_encoder, make_params) -> None:
    shards = make_shards({split: {"": 3} for split in ("train", "val", "test")})
    outcome = finetune.run(make_params(), shards, tiny_encoder, CPU)
    assert outcome.numbers == {} and "no labels" in (outcome.skipped or "")
