"""The masked autoencoder on real shards: killed, stopped, and continued by fewer processes."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mae.data.sharding.run import shard_dataset
from mae.errors import Interrupted
from mae.params import Params, parse_params
from mae.training import pretraining
from mae.training.devices import joined
from mae.training.journal import read_journal
from tests.small_project import small_params, write_images
from tests.training.kills import Kill, Rank, arm, ended, start


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_images(root / "source")
    shard_dataset("images", small_params(root / "source").data, 0, root / "shards")
    return root


def small_run(source: Path) -> Params:
    """Six epochs of a few steps of eight images."""
    content = small_params(source / "source").model_dump(mode="json", by_alias=True)
    content["pretrain"] |= {"epochs": 6, "batch": 8, "warmup_epochs": 0, "precision": "fp32"}
    content["pretrain"] |= {"ema": 0.9}
    content["runtime"] |= {"checkpoint_minutes": 1e-9, "log_every": 1}
    return parse_params(content)


def _pretrain(source: str, runs: str, rank: Rank, kill: Kill | None) -> None:
    """Pretrain, writing down the ids and the visible patches of each step to `runs`/fed-<rank>."""
    rank.settle()
    learn = pretraining.PretrainTask.forward
    seen: list[Any] = []

    def watching(task: pretraining.PretrainTask, batch: Any, epoch: int) -> Any:
        handle = task.autoencoder.register_forward_hook(lambda *call: seen.append(call[-1]))
        result = learn(task, batch, epoch)
        handle.remove()
        if torch.is_grad_enabled():
            line = [epoch, batch.ids.tolist(), seen[-1].masking.keep.tolist()]
            with Path(runs, f"fed-{rank.rank}").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return result

    pretraining.PretrainTask.forward = watching  # type: ignore[method-assign]
    arm(kill)
    with joined("cpu") as place:
        try:
            done = pretraining.pretrain(
                small_run(Path(source)), Path(source, "shards"), Path(runs), place
            )
        except Interrupted as stop:
            sys.exit(stop.exit_code)
        if place.leads:
            save_file(dict(done.autoencoder.state_dict()), f"{runs}/weights.safetensors")


def pretrain(source: Path, runs: Path, kill: Kill | None = None) -> int | None:
    return ended(start(_pretrain, str(source), str(runs), Rank(), kill))


@pytest.fixture(scope="module")
def pretrained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("pretrained")
    assert pretrain(source, runs) == 0
    return runs


def fed(runs: Path, rank: int = 0) -> list[list[Any]]:
    return [json.loads(line) for line in (runs / f"fed-{rank}").read_text().splitlines()]


def the_run(runs: Path) -> Path:
    (folder,) = (path for path in runs.iterdir() if path.is_dir())
    return folder


def losses(runs: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_journal(the_run(runs))]


def test_pretraining_survives_kills(source: Path, tmp_path: Path, pretrained: Path) -> None:
    for kill in (Kill("backward", 3), Kill("tensors", 6), Kill("pretraining", 4)):
        assert pretrain(source, tmp_path, kill) == -signal.SIGKILL
    assert pretrain(source, tmp_path) == 0
    ours, theirs = (load_file(runs / "weights.safetensors") for runs in (tmp_path, pretrained))
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert losses(tmp_path) == losses(pretrained)
    steps = [step for step, _ in losses(tmp_path)]
    assert steps == list(range(1, len(fed(pretrained)) + 1)) and len(steps) > 10


def test_two_processes_are_continued_by_one_with_the_same_images_and_masks(
    source: Path, tmp_path: Path, pretrained: Path, free_port: int
) -> None:
    asked = Kill("backward", 4, signal.SIGTERM)
    pair = [
        start(_pretrain, str(source), str(tmp_path), Rank(rank, 2, free_port), asked)
        for rank in (0, 1)
    ]
    assert [ended(process) for process in pair] == [75, 75]
    in_two = [fed(tmp_path, rank) for rank in (0, 1)]
    done = len(in_two[0])
    assert 4 <= done == len(in_two[1]) < len(fed(pretrained))
    assert pretrain(source, tmp_path) == 0
    # Rank 0 has the first part of each batch, rank 1 the second; then one has it all.
    joint = [
        [epoch, ids + other_ids, keep + other_keep]
        for (epoch, ids, keep), (_, other_ids, other_keep) in zip(*in_two, strict=True)
    ]
    assert joint + fed(tmp_path)[done:] == fed(pretrained)
    for (step, ours), (same, theirs) in zip(losses(tmp_path), losses(pretrained), strict=True):
        assert step == same and ours == pytest.approx(theirs, rel=1e-4)
    ours, theirs = (load_file(runs / "weights.safetensors") for runs in (tmp_path, pretrained))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)
