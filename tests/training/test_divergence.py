"""Steps that go wrong: left out, kept for inspection, gone back from, given up on."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mae.errors import DivergedError, Interrupted
from mae.params import DivergenceParams
from mae.training.divergence import Watch
from mae.training.journal import read_events, read_journal
from mae.training.trainer import Trainer
from tests.training.conftest import CAREFUL, Poison, make_trainer, weights

CPU = torch.device("cpu")
NAN = math.nan


def poisoned(steps: range, value: float = NAN, rank: int = 0) -> Poison:
    return {(step, rank): value for step in steps}


def reports(folder: Path) -> dict[str, dict[str, Any]]:
    found = sorted((folder / "incidents").glob("*/report.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_a_bad_batch_is_left_out_and_named(tmp_path: Path, value: float) -> None:
    trainer = make_trainer(tmp_path, poison=poisoned(range(9, 10), value), divergence={})
    trainer.run()
    assert weights(trainer).isfinite().all()
    (name, report), *more = reports(tmp_path).items()
    assert not more and name == "step-0000009-rank-0"
    [batch] = trainer.loader.batches(9, 10)
    assert report["ids"] == batch.ids.tolist() and report["step"] == 9 and report["epoch"] == 2
    assert "the loss became" in report["reason"]
    kept = load_file(tmp_path / "incidents" / name / "batch.safetensors")
    assert torch.equal(kept["y"], batch.y) and not kept["x"].isfinite().all()
    [event] = read_events(tmp_path)
    assert (event["event"], event["step"]) == ("skipped", 10)
    assert event["folder"].endswith(name)
    # What was left out does not show in the means either.
    assert all(math.isfinite(line["loss"]) for line in read_journal(tmp_path))


def test_what_is_left_out_changes_nothing(tmp_path: Path) -> None:
    """The update of a bad step is no update at all, of the optimiser's moments neither."""
    states = []
    for steps in (range(0), range(9, 10)):
        trainer = make_trainer(tmp_path / str(len(steps)), poison=poisoned(steps), divergence={})
        take_step = trainer._train_step

        def skipping(step: int, batch: Any, take: Any = take_step, skip: range = steps) -> None:
            if step != 9 or skip:
                take(step, batch)

        trainer._train_step = skipping  # type: ignore[method-assign]
        trainer.run()
        states.append(weights(trainer))
    assert torch.equal(*states)


def test_a_spike_is_left_out_and_a_usual_loss_is_not(tmp_path: Path) -> None:
    poison = {(44, 0): 30.0, (50, 0): 1.01}
    trainer = make_trainer(tmp_path, poison=poison, divergence={"spike": 3.0}, epochs=20)
    trainer.run()
    assert list(reports(tmp_path)) == ["step-0000044-rank-0"]
    assert "is above" in reports(tmp_path)["step-0000044-rank-0"]["reason"]
    careless = make_trainer(tmp_path / "all", poison=poison, divergence={"spike": None}, epochs=20)
    careless.run()
    assert not reports(tmp_path / "all")


def test_weights_that_are_no_numbers_send_the_run_back(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, divergence={})
    take_step = trainer._train_step
    broken = []

    def breaking(step: int, batch: Any) -> None:
        if step == 17 and not broken:
            broken.append(step)
            with torch.no_grad():
                next(iter(trainer.task.parameters())).view(-1)[0] = NAN
        take_step(step, batch)

    trainer._train_step = breaking  # type: ignore[method-assign]
    trainer.run()
    assert weights(trainer).isfinite().all()
    events = read_events(tmp_path)
    [back] = [event for event in events if event["event"] == "rewound"]
    assert (back["step"], back["diverged_at"], back["lr_factor"]) == (17, 21, 0.5)
    lines = read_journal(tmp_path)
    assert [line["step"] for line in lines] == list(range(4, 41, 4))
    whole = make_trainer()
    assert lines[-1]["lr"] == pytest.approx(0.5 * whole.schedule.lr(39))


def test_it_gives_up_and_says_where_the_images_are(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, poison=poisoned(range(20, 40)), divergence={})
    with pytest.raises(DivergedError, match=r"4 steps on end went wrong before step 24.*incidents"):
        trainer.run()
    assert [e["event"] for e in read_events(tmp_path)].count("rewound") == CAREFUL["give_up"]
    assert read_events(tmp_path)[-1]["event"] == "diverged"
    assert weights(trainer).isfinite().all()


def test_a_run_without_a_rule_ends_at_the_first_bad_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, poison=poisoned(range(9, 10)))
    with pytest.raises(DivergedError, match="1 steps on end went wrong before step 10"):
        trainer.run()
    kept = max((tmp_path / "checkpoints").glob("step-*"))
    assert int(kept.name[5:]) == 9


def test_a_silent_run_ends_too() -> None:
    with pytest.raises(DivergedError, match="the loss became nan before step 12"):
        make_trainer(poison=poisoned(range(9, 10))).run()


@pytest.mark.parametrize("stop", [8, 10, 21, 33])
def test_a_run_with_bad_steps_continues_to_the_bit(tmp_path: Path, stop: int) -> None:
    poison = poisoned(range(9, 11)) | poisoned(range(18, 24))
    whole = make_trainer(tmp_path / "whole", poison=poison, divergence={"patience": 9})
    whole.run()

    def killed() -> Trainer:
        return make_trainer(tmp_path / "killed", poison=poison, divergence={"patience": 9})

    first = killed()
    take_step = first._train_step

    def stopping(step: int, batch: Any) -> None:
        take_step(step, batch)
        if step + 1 == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    first._train_step = stopping  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        first.run()
    second = killed()
    second.run()
    assert torch.equal(weights(second), weights(whole))
    losses = [
        [line["loss"] for line in read_journal(tmp_path / name)] for name in ("whole", "killed")
    ]
    assert losses[0] == losses[1]


def test_the_watch_knows_what_is_usual() -> None:
    watch = Watch(DivergenceParams(spike=2.0, patience=1, backoff=1.0, give_up=0), CPU)
    norm = torch.tensor(1.0)
    for step in range(32):
        assert watch.judge(step, torch.tensor(5.0 + 0.01 * step), norm) == 0
    assert watch.limit == math.inf
    assert watch.judge(32, torch.tensor(10.7), norm) == 1  # the limit is looked up first
    assert float(watch.limit) == pytest.approx(2 * 5.295, abs=0.02)
    assert watch.judge(33, torch.tensor(10.5), norm) == 0
    assert watch.judge(34, torch.tensor(1.0), torch.tensor(NAN)) == 1
    again = Watch(watch.params, CPU)
    again.load(json.loads(json.dumps(watch.state())))
    for step in range(35, 80):
        loss = torch.tensor(5.0 + step % 7)
        assert torch.equal(watch.judge(step, loss, norm), again.judge(step, loss, norm))
    assert torch.equal(watch.limit, again.limit)
    again.start_again()
    assert again.judge(80, torch.tensor(1e6), norm) == 0
