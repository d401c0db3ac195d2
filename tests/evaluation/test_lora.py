"""Low-rank adapters as a protocol: a few numbers learn beside an encoder that does not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mae.errors import ParamsError
from mae.evaluation import lora
from mae.evaluation.classification import ClassificationTask
from mae.model.artifact import load_encoder
from mae.model.lora import merge
from mae.training.devices import Place

PLACE = Place(torch.device("cpu"))
NOWHERE = Path("nowhere")  # it draws no picture
FAST: dict[str, Any] = {"labels_per_class": 2, "epochs": 3, "seeds": 2, "rank": 2, "alpha": 2.0}


def test_adapters_learn_and_the_encoder_does_not(
    digit_shards, tiny_encoder, make_params, monkeypatch
) -> None:
    tasks: list[ClassificationTask] = []
    made = ClassificationTask.__init__

    def watched(task: ClassificationTask, *args: Any) -> None:
        made(task, *args)
        tasks.append(task)

    monkeypatch.setattr(ClassificationTask, "__init__", watched)
    params = make_params(lora=FAST, finetune={"batch": 10})
    outcome = lora.run(params, digit_shards, tiny_encoder, PLACE, NOWHERE)
    adapters = 2 * 2 * ((32 + 3 * 32) + (32 + 32))  # blocks x rank x (in + out)
    assert outcome.numbers["parameters"] == adapters + 32 * 10 + 10
    assert set(outcome.numbers) == {
        "parameters", "accuracy", "accuracy_std", "accuracy_random", "accuracy_random_std"
    }  # fmt: skip
    assert outcome.detail["encoder_parameters"] > 50 * adapters / 2
    (beside,) = outcome.comparisons
    assert beside.task == "Low-rank adapters, 2 labels per class"
    assert beside.baseline == "random encoder" and len(beside.values) == 2

    encoder = tasks[0].classifier.encoder
    own = load_encoder(tiny_encoder).encoder.state_dict()
    kept = {name.replace(".base", ""): value for name, value in encoder.state_dict().items()}
    assert all(torch.equal(kept[name], weight) for name, weight in own.items())
    merge(encoder)
    moved = {name for name, w in encoder.state_dict().items() if not torch.equal(w, own[name])}
    assert moved == {f"blocks.{n}.attn.{layer}.weight" for n in (0, 1) for layer in ("qkv", "proj")}


def test_a_rank_that_is_not_low_is_refused(digit_shards, tiny_encoder, make_params) -> None:
    params = make_params(lora=FAST | {"rank": 64})
    with pytest.raises(
        ParamsError, match=r"evaluate\.lora\.rank 64 exceeds the encoder's width 32"
    ):
        lora.run(params, digit_shards, tiny_encoder, PLACE, NOWHERE)


def test_no_labels_is_skipped_in_words(make_shards, tiny_encoder, make_params) -> None:
    shards = make_shards({split: {"": 3} for split in ("train", "val", "test")})
    outcome = lora.run(make_params(), shards, tiny_encoder, PLACE, NOWHERE)
    assert outcome.numbers == {} and "no labels" in (outcome.skipped or "")
