"""Partial fine-tuning: which blocks learn, what stays, and how it is told."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mae.errors import ParamsError
from mae.evaluation import opening, partial
from mae.evaluation.classification import ClassificationTask
from mae.model.convolutional import ConvolutionalArchitecture, ConvolutionalEncoder
from mae.training.devices import Place

PLACE = Place(torch.device("cpu"))
FAST: dict[str, Any] = {"labels_per_class": 2, "epochs": 2, "seeds": 2}


def test_tunes_each_number_of_blocks_and_says_what_it_left_out(
    digit_shards, tiny_encoder, make_params, tmp_path: Path, monkeypatch
) -> None:
    tasks: list[ClassificationTask] = []
    made = ClassificationTask.__init__

    def watched(task: ClassificationTask, *args: Any) -> None:
        made(task, *args)
        tasks.append(task)

    monkeypatch.setattr(ClassificationTask, "__init__", watched)
    params = make_params(partial=FAST | {"blocks": [1, 0, 0.5, 4]}, finetune={"batch": 10})
    outcome = partial.run(params, digit_shards, tiny_encoder, PLACE, tmp_path)
    keys = [f"accuracy_{count}_blocks" for count in ("0", "0_5", "1")]
    arms = [key + arm for key in keys for arm in ("", "_random")]
    assert set(outcome.numbers) == {*arms, *(f"{key}_std" for key in arms)}
    assert outcome.detail["left_out"] == "4 blocks are left out: the encoder has 2"
    assert (tmp_path / "partial.png").read_bytes()[:4] == b"\x89PNG"
    learned = [
        outcome.detail["blocks"][count]["pretrained"]["parameters"] for count in ("0", "0.5", "1")
    ]
    head, norms, hidden = 32 * 10 + 10, 2 * 32, 4 * 32
    mlp = 2 * 32 * hidden + hidden + 32 + 2 * 32  # both layers and the norm before them
    attention = 4 * 32 * 32 + 4 * 32 + 2 * 32
    assert learned == [head, head + norms + mlp, head + norms + mlp + attention]
    # By blocks, arm and seed: what does not learn is what it was.
    stem = [task.classifier.encoder.patch_embed.weight for task in tasks]
    assert torch.equal(stem[0], stem[-4]) and not any(weight.requires_grad for weight in stem)
    assert [one.task for one in outcome.comparisons] == [
        "Last 1 block tuned, 2 labels per class",
        "Last MLP tuned, 2 labels per class",
        "Linear layer alone, 2 labels per class",
    ]
    assert {one.baseline for one in outcome.comparisons} == {"random encoder"}
    assert not any(one.deciding for one in outcome.comparisons)
    assert len(outcome.comparisons[0].pretrained) == 2


def test_only_the_leading_process_draws(
    digit_shards, tiny_encoder, make_params, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(Place, "leads", False)
    params = make_params(partial=FAST | {"blocks": [0], "epochs": 1, "seeds": 1})
    assert partial.run(params, digit_shards, tiny_encoder, PLACE, tmp_path).numbers
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_are_no_halves_are_refused_before_training(
    digit_shards, tiny_encoder, make_params, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(ClassificationTask, "forward", lambda *_: pytest.fail("trained"))
    params = make_params(partial=FAST | {"blocks": [0, 0.7]})
    with pytest.raises(ParamsError, match=r"0.7 blocks cannot be tuned"):
        partial.run(params, digit_shards, tiny_encoder, PLACE, tmp_path)


def test_without_labels_or_blocks_it_is_skipped_in_words(
    make_shards, digit_shards, tiny_encoder, make_params, tmp_path: Path, monkeypatch
) -> None:
    shards = make_shards({split: {"": 3} for split in ("train", "val", "test")})
    outcome = partial.run(make_params(), shards, tiny_encoder, PLACE, tmp_path)
    assert outcome.numbers == {} and "no labels" in (outcome.skipped or "")
    convolutional = ConvolutionalEncoder(ConvolutionalArchitecture(1, 24, 24, 16))
    load = opening.load_encoder

    def loaded(folder: Path) -> Any:
        artifact = load(folder)
        return type(artifact)(convolutional, artifact.statistics, artifact.info)

    monkeypatch.setattr(opening, "load_encoder", loaded)
    outcome = partial.run(make_params(), digit_shards, tiny_encoder, PLACE, tmp_path)
    assert "no transformer blocks" in (outcome.skipped or "")
