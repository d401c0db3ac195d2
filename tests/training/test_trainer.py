import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mae.errors import Interrupted, ParamsError
from mae.training.devices import Place, joined
from mae.training.journal import read_events, read_journal
from tests.training.conftest import ROOT, make_trainer, weights

SLOW_STEPS = """
import os, time
from pathlib import Path
from tests.training.conftest import make_trainer
trainer = make_trainer(Path({folder!r}))
step = trainer._train_step
def slow(*arguments):
    time.sleep(0.02)
    step(*arguments)
trainer._train_step = slow
trainer.run()
"""


def test_learns_and_journals(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, dropout=0.0, epochs=40)
    trainer.run()
    lines = read_journal(tmp_path)
    assert [line["step"] for line in lines] == list(range(4, 161, 4))
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]
    assert {"epoch", "lr", "absolute", "images_per_second", "wait_share"} <= lines[0].keys()
    assert not trainer.task.training


def test_runs_are_repeatable(trained: Tensor) -> None:
    torch.manual_seed(12345)  # whatever the global generator was before
    trainer = make_trainer()
    trainer.run()
    assert torch.equal(weights(trainer), trained)


@pytest.mark.parametrize("stop", [1, 6, 39])
def test_a_run_continues_to_the_bit(tmp_path: Path, trained: Tensor, stop: int) -> None:
    first = make_trainer(tmp_path)
    take_step = first._train_step

    def stopping(step: int, batch: Any) -> None:
        take_step(step, batch)
        if step + 1 == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    first._train_step = stopping  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match=f"step {stop} of 40, state saved"):
        first.run()
    second = make_trainer(tmp_path)
    second.run()
    assert torch.equal(weights(second), trained)
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    exact = ("step", "epoch", "lr", "loss", "absolute")
    journals = [
        [{key: line[key] for key in exact} for line in read_journal(folder)]
        for folder in (tmp_path, tmp_path / "whole")
    ]
    assert journals[0] == journals[1]


def test_kill_9_loses_nothing_that_was_saved(tmp_path: Path, trained: Tensor) -> None:
    program = SLOW_STEPS.format(folder=str(tmp_path))
    kills = 0
    for wanted in (3, 11, 20, 33):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
        checkpoints = tmp_path / "checkpoints"
        while process.poll() is None:
            done = [int(f.name[5:]) for f in checkpoints.glob("step-*")]
            if max(done, default=0) >= wanted:
                process.kill()
                kills += 1
                break
            time.sleep(0.005)
        process.wait()
    assert kills >= 3
    trainer = make_trainer(tmp_path)
    trainer.run()
    assert torch.equal(weights(trainer), trained)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, trained: Tensor) -> None:
    make_trainer(tmp_path).run()
    again = make_trainer(tmp_path)
    again._train_step = lambda *_: pytest.fail("trained again")  # type: ignore[method-assign]
    again.run()
    assert torch.equal(weights(again), trained)


def test_a_damaged_newest_checkpoint_is_passed_over(
    tmp_path: Path, trained: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path).run()
    newest = max((tmp_path / "checkpoints").iterdir())
    weights_file = newest / "weights.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-5] ^= 1
    weights_file.write_bytes(content)
    trainer = make_trainer(tmp_path)
    trainer.run()
    assert "is damaged (checksum of weights.safetensors differs)" in caplog.text
    assert torch.equal(weights(trainer), trained)


def test_accumulation_equals_the_whole_batch() -> None:
    whole, parts = make_trainer(dropout=0.0), make_trainer(dropout=0.0, accumulate=4)
    whole.run()
    parts.run()
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-4, atol=1e-5)


def test_old_checkpoints_go(tmp_path: Path) -> None:
    make_trainer(tmp_path, runtime={"keep_checkpoints": 3}).run()
    names = sorted(f.name for f in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-0000038", "step-0000039", "step-0000040"]


def test_signal_handlers_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    make_trainer(tmp_path).run()
    assert signal.getsignal(signal.SIGTERM) is before


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(ParamsError, match="a batch of 16 images cannot be cut into"):
        make_trainer(place=Place(torch.device("cpu"), 0, 3))


def test_bf16_learns_too() -> None:
    trainer = make_trainer(dropout=0.0, epochs=40, precision="bf16")
    trainer.run()
    exact = make_trainer(dropout=0.0, epochs=40)
    exact.run()
    assert 0 < (weights(trainer) - weights(exact)).abs().max() < 0.5


# --- two processes ----------------------------------------------------------------------------


def _train_as(rank: int, port: int, folder: str, result: str, settings: dict[str, Any]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with joined("cpu") as place:
        trainer = make_trainer(Path(folder), place, dropout=0.0, **settings)
        trainer.run()
        torch.save(weights(trainer), f"{result}-{rank}.pt")


def train_in_two(tmp_path: Path, free_port: int, **settings: Any) -> list[Tensor]:
    context = multiprocessing.get_context("spawn")
    folder, result = str(tmp_path / "run"), str(tmp_path / "weights")
    processes = [
        context.Process(target=_train_as, args=(rank, free_port, folder, result, settings))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(f"{result}-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_equal_one(tmp_path: Path, free_port: int, accumulate: int) -> None:
    first, second = train_in_two(tmp_path, free_port, accumulate=accumulate)
    assert torch.equal(first, second)
    alone = make_trainer(tmp_path / "alone", dropout=0.0)
    alone.run()
    torch.testing.assert_close(first, weights(alone), rtol=1e-4, atol=1e-5)
    both, one = (read_journal(tmp_path / name) for name in ("run", "alone"))
    losses = [line["loss"] for line in one]
    assert [line["loss"] for line in both] == pytest.approx(losses, rel=1e-4)


def test_a_run_of_two_processes_goes_on_in_one(tmp_path: Path, free_port: int) -> None:
    train_in_two(tmp_path, free_port, runtime={"keep_checkpoints": 100})
    run = tmp_path / "run" / "checkpoints"
    for folder in run.iterdir():
        if int(folder.name[5:]) > 20:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    trainer = make_trainer(tmp_path / "run", dropout=0.0)
    trainer.run()
    alone = make_trainer(dropout=0.0)
    alone.run()
    torch.testing.assert_close(weights(trainer), weights(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_goes_wrong_in_one_process_is_left_out_by_all(
    tmp_path: Path, free_port: int, rank: int
) -> None:
    first, second = train_in_two(
        tmp_path, free_port, poison={(9, rank): float("nan")}, divergence={}
    )
    assert torch.equal(first, second) and first.isfinite().all()
    kept = [path.name for path in (tmp_path / "run/incidents").iterdir()]
    assert kept == [f"step-0000009-rank-{rank}"]
    [event] = read_events(tmp_path / "run")
    assert "(in 1 of the processes)" in event["reason"]
