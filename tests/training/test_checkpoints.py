"""What is saved comes back exactly, whatever training does meanwhile, and old states go."""

import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mae.files import read_json
from mae.training import checkpoint_folders, checkpoints
from mae.training.checkpoints import (
    Checkpoints,
    Progress,
    load_optimizer_tensors,
    optimizer_tensors,
)
from mae.training.lars import LARS
from mae.training.snapshot import Snapshot, Tensors


def learnt(steps: int, make: Any = torch.optim.AdamW) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = make(module.parameters(), lr=0.1)
    for _ in range(steps):
        module(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


def tensors_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    return {"weights": module.state_dict(), "optimizer": optimizer_tensors(optimizer)}


def saved(folder: Path, *steps: int, keep: int = 2, identity: str = "mine") -> Checkpoints:
    kept = Checkpoints(folder, identity, keep)
    for step in steps:
        kept.save(Progress(step, {"sums": {"loss": 0.1 + 0.2}}), tensors_of(*learnt(step)))
    kept.wait()
    return kept


def names(kept: Checkpoints) -> list[str]:
    return sorted(path.name for path in kept.folder.iterdir())


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    return saved(tmp_path / "checkpoints", 1, 2, 3)


# --- what comes back ------------------------------------------------------------------------


@pytest.mark.parametrize("make", [torch.optim.AdamW, LARS])
def test_the_newest_is_restored_exactly(tmp_path: Path, make: Any) -> None:
    kept = Checkpoints(tmp_path, "mine", keep=2)
    progress = Progress(3, {"sums": {"loss": 0.1 + 0.2}, "tiny": 5e-324, "none": None})
    kept.save(progress, tensors_of(*learnt(3, make)))
    restored = kept.restore()
    assert restored is not None and restored.progress == progress
    module, optimizer = learnt(0, make)
    module.load_state_dict(restored.tensors["weights"])
    load_optimizer_tensors(optimizer, restored.tensors["optimizer"], "here")
    expected_module, expected = learnt(4, make)
    module(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()  # the fourth step after the restoration is the fourth without
    for parameter, twin in zip(module.parameters(), expected_module.parameters(), strict=True):
        assert torch.equal(parameter, twin)
        assert expected.state[twin].keys() == optimizer.state[parameter].keys() != set()
        for name, value in expected.state[twin].items():
            assert torch.equal(optimizer.state[parameter][name], value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_every_type_and_layout_comes_back_as_it_was(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.arange(-12, 12).reshape(4, 6).to(dtype)
    members = {"whole": whole, "turned": whole.T, "part": whole[:, 1], "number": whole[1, 2]}
    kept = Checkpoints(tmp_path, "mine", keep=1)
    kept.save(Progress(1, {}), {"average": members})
    restored = kept.restore()
    assert restored is not None
    for name, tensor in members.items():
        found = restored.tensors["average"][name]
        assert found.dtype == dtype and torch.equal(found, tensor)


def test_what_was_read_does_not_hang_on_the_file(kept: Checkpoints) -> None:
    restored = kept.restore()
    assert restored is not None
    expected = {name: t.clone() for name, t in restored.tensors["weights"].items()}
    path = restored.folder / "weights.safetensors"
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    for name, tensor in expected.items():
        assert torch.equal(restored.tensors["weights"][name], tensor)
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_nothing_saved_is_a_fresh_start(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "none", "mine", keep=1)
    assert kept.restore() is kept.before(7) is kept.newest_step() is None
    kept.discard_after(0)
    kept.wait()
    assert not kept.folder.exists()


def test_no_file_is_a_pickle(kept: Checkpoints) -> None:
    files = {file.name for file in kept.folder.rglob("*") if file.is_file()}
    assert files == {"weights.safetensors", "optimizer.safetensors", "state.json"}


def test_others_may_read_the_files(kept: Checkpoints) -> None:
    for file in kept.folder.rglob("*.safetensors"):
        assert file.stat().st_mode & 0o444 == 0o444


# --- behind the caller's back ---------------------------------------------------------------


class Gate:
    """Holds the writer up until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        save_file = checkpoints.save_file

        def waiting(*arguments: Any) -> None:
            self.reached.set()
            assert self.open.wait(30)
            save_file(*arguments)

        monkeypatch.setattr(checkpoints, "save_file", waiting)


def test_training_goes_on_while_a_state_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    module, optimizer = learnt(1)
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    numbers: dict[str, Any] = {"sums": {"loss": 1.5}}
    kept = Checkpoints(tmp_path, "mine", keep=2)
    kept.save(Progress(1, numbers), tensors_of(module, optimizer))
    assert gate.reached.wait(30)
    numbers["sums"]["loss"] = 99.0
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
        for state in optimizer.state.values():
            state["exp_avg"].fill_(7.0)
    assert kept.newest_step() is None  # not written yet, and save has long returned
    gate.open.set()
    restored = kept.restore()  # waits
    assert restored is not None and restored.progress.numbers == {"sums": {"loss": 1.5}}
    for name, tensor in expected.items():
        assert torch.equal(restored.tensors["weights"][name], tensor)
    assert not (restored.tensors["optimizer"]["0.exp_avg"] == 7.0).any()


def test_a_second_save_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    kept = Checkpoints(tmp_path, "mine", keep=2)
    kept.save(Progress(1, {}), tensors_of(*learnt(1)))
    assert gate.reached.wait(30)
    second = threading.Thread(target=kept.save, args=(Progress(2, {}), tensors_of(*learnt(2))))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    gate.open.set()
    second.join(30)
    kept.wait()
    assert names(kept) == ["step-0000001", "step-0000002"]
    weights = [kept.before(step).tensors["weights"]["weight"] for step in (1, 2)]  # type: ignore[union-attr]
    for found, steps in zip(weights, (1, 2), strict=True):
        assert torch.equal(found, learnt(steps)[0].weight)  # type: ignore[arg-type]


def test_a_fault_of_ours_is_not_taken_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: Any) -> None:
        raise TypeError("a mistake")

    monkeypatch.setattr(checkpoints, "save_file", faulty)
    kept = Checkpoints(tmp_path, "mine", 1)
    kept.save(Progress(1, {}), tensors_of(*learnt(1)))
    with pytest.raises(TypeError, match="a mistake"):
        kept.wait()
    assert names(kept) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_are_refused_at_once(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Checkpoints(tmp_path, "mine", 1).save(Progress(1, {"loss": number}), {})
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_uses_its_memory_again() -> None:
    snapshot = Snapshot()
    tensors = {"weights": {"a": torch.ones(4), "b": torch.ones(2, 3).T}}
    first = snapshot.take(tensors)
    places = {name: tensor.data_ptr() for name, tensor in first["weights"].items()}
    tensors["weights"]["a"] *= 3
    second = snapshot.take(tensors)
    assert {name: tensor.data_ptr() for name, tensor in second["weights"].items()} == places
    assert second["weights"]["a"].tolist() == [3.0] * 4
    assert second["weights"]["b"].is_contiguous() and second["weights"]["b"].shape == (3, 2)
    grown = snapshot.take({"weights": {"a": torch.zeros(5)}})
    assert grown["weights"]["a"].tolist() == [0.0] * 5


# --- which ones stay ------------------------------------------------------------------------


def test_only_the_newest_stay(kept: Checkpoints) -> None:
    assert names(kept) == ["step-0000002", "step-0000003"]
    assert kept.newest_step() == 3


def test_some_are_kept_for_good(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "mine", keep=1)
    for step in range(1, 8):
        kept.save(Progress(step, {}), {"weights": {}}, keep_for_good=step % 3 == 0)
    kept.wait()
    assert names(kept) == ["step-0000003", "step-0000006", "step-0000007"]


def test_a_person_keeps_one_with_an_empty_file(kept: Checkpoints) -> None:
    (kept.folder / "step-0000002" / "keep").touch()
    saved(kept.folder, 4, 5)
    assert names(kept) == ["step-0000002", "step-0000004", "step-0000005"]
    restored = kept.before(2)
    assert restored is not None and restored.progress.step == 2


def test_order_is_that_of_the_numbers_however_long(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "mine", keep=1)
    for step in (9_999_999, 10_000_000):
        kept.save(Progress(step, {}), {"weights": {}})
    kept.wait()
    assert names(kept) == ["step-10000000"] and kept.newest_step() == 10_000_000


def test_an_old_one_that_cannot_be_removed_does_no_harm(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refusing(path: Path, *, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint_folders.shutil, "rmtree", refusing)
    saved(kept.folder, 4)
    assert "cannot remove" in caplog.text and "step-0000002" in caplog.text
    assert kept.newest_step() == 4


# --- going back -----------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "found"), [(0, None), (1, 1), (4, 1), (5, 5), (9, 8)])
def test_the_newest_before_a_step(tmp_path: Path, step: int, found: int | None) -> None:
    restored = saved(tmp_path, 1, 5, 8, keep=9).before(step)
    assert (restored and restored.progress.step) == found


def test_a_run_that_went_back_forgets_what_came_after(tmp_path: Path) -> None:
    kept = saved(tmp_path, 1, 5, 8, keep=9)
    kept.discard_after(5)
    assert names(kept) == ["step-0000001", "step-0000005"]


def test_a_step_saved_again_takes_the_place_of_the_first(kept: Checkpoints) -> None:
    kept.save(Progress(3, {"lr_factor": 0.5}), tensors_of(*learnt(7)))
    restored = kept.restore()
    assert restored is not None and restored.progress == Progress(3, {"lr_factor": 0.5})
    assert torch.equal(restored.tensors["weights"]["weight"], learnt(7)[0].weight)  # type: ignore[arg-type]
    assert names(kept) == ["step-0000002", "step-0000003"]


# --- what killed writers leave --------------------------------------------------------------


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_left_overs_of_dead_writers_go(kept: Checkpoints, dead: int) -> None:
    host = checkpoint_folders._HOST
    alive = os.getppid()
    for name in (f"{host}.{dead}.new", f"{host}.{alive}.new", f"elsewhere.{dead}.new"):
        (kept.folder / f".step-0000004.{name}").mkdir()
    (kept.folder / f".step-0000003.{host}.{dead}.old").mkdir()
    (kept.folder / f".step-0000005.{host}.{os.getpid()}.new").mkdir()  # a number given again
    restored = kept.restore()
    assert restored is not None and restored.progress.step == 3
    assert names(kept) == [
        f".step-0000004.elsewhere.{dead}.new",
        f".step-0000004.{host}.{alive}.new",
        "step-0000002",
        "step-0000003",
    ]


def test_one_killed_while_it_replaced_a_state_loses_neither(kept: Checkpoints, dead: int) -> None:
    """Killed between its two renames it left the old state and the new one, both hidden."""
    hidden = f".step-0000003.{checkpoint_folders._HOST}.{dead}"
    (kept.folder / "step-0000003").rename(kept.folder / f"{hidden}.old")
    (kept.folder / f"{hidden}.new").mkdir()
    restored = kept.restore()
    assert restored is not None and restored.progress.step == 3
    assert names(kept) == ["step-0000002", "step-0000003"]


def test_a_state_says_whose_it_is(kept: Checkpoints) -> None:
    state = read_json(kept.folder / "step-0000003" / "state.json")
    assert state["format"] == 2 and state["identity"] == "mine" and state["step"] == 3
    assert state["sha256"].keys() == {"weights.safetensors", "optimizer.safetensors"}
