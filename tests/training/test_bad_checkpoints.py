"""Damage is noticed and passed over, what is foreign is refused, a full disk is survived."""

import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mae.errors import CheckpointError
from mae.files import fingerprint, read_json, write_json
from mae.training import checkpoints
from mae.training.checkpoints import (
    Checkpoints,
    Progress,
    load_optimizer_tensors,
    optimizer_tensors,
)
from mae.training.distributed import load_full_state
from tests.training.conftest import make_trainer, weights
from tests.training.test_checkpoints import learnt, names, saved, tensors_of

FILES = ["weights.safetensors", "optimizer.safetensors", "state.json"]


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    return saved(tmp_path / "checkpoints", 1, 2, 3)


def newest(kept: Checkpoints) -> Path:
    return kept.folder / f"step-{kept.newest_step():07d}"


# --- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_one_is_passed_over(
    kept: Checkpoints, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = newest(kept) / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-9])
    restored = kept.restore()
    assert restored is not None and restored.progress.step == 2
    assert torch.equal(restored.tensors["weights"]["weight"], learnt(2)[0].weight)  # type: ignore[arg-type]
    assert "step-0000003 is damaged" in caplog.text and name in caplog.text
    assert names(kept) == ["damaged-step-0000003", "step-0000002"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pristine"), 2, 3).folder


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_is_believed(pristine: Path, name: str, place: float, bit: int) -> None:
    """Whichever bit of whichever file: what comes back is one of the two states, to the bit."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "checkpoints"
        shutil.copytree(pristine, folder)
        path = folder / "step-0000003" / name
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1 << bit
        path.write_bytes(content)
        restored = Checkpoints(folder, "mine", 2).restore()
        assert restored is not None
        # Only white space between the JSON's values may change without a consequence.
        assert restored.progress.step == 2 or name == "state.json"
        step = restored.progress.step
        assert restored.progress == Progress(step, {"sums": {"loss": 0.1 + 0.2}})
        expected = tensors_of(*learnt(step))
        for group, members in expected.items():
            for key, tensor in members.items():
                assert torch.equal(restored.tensors[group][key], tensor)


def test_the_damaged_one_does_not_count_among_the_newest(kept: Checkpoints) -> None:
    for _ in range(2):
        (newest(kept) / "weights.safetensors").write_bytes(b"")
        kept.restore()
        kept.save(Progress(3, {}), tensors_of(*learnt(3)))  # the same step again
        kept.wait()
    kept.save(Progress(4, {}), tensors_of(*learnt(4)))
    kept.wait()
    damaged = ["damaged-step-0000003", "damaged-step-0000003-2"]
    assert names(kept) == [*damaged, "step-0000003", "step-0000004"]


def test_where_all_are_damaged_the_run_starts_afresh_and_says_so(
    kept: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    for path in kept.folder.glob("step-*/state.json"):
        path.write_text("[]")
    assert kept.restore() is None
    assert "no checkpoint in" in caplog.text and "starts from the beginning" in caplog.text
    assert names(kept) == ["damaged-step-0000002", "damaged-step-0000003"]


def test_one_that_may_not_be_read_is_no_damage(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoints, "sha256_of_file", refusing)
    with pytest.raises(CheckpointError, match=r"step-0000003 may not be read .*Permission denied"):
        kept.restore()
    assert names(kept) == ["step-0000002", "step-0000003"]


def test_another_process_may_set_it_aside_first(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = checkpoints.read_json

    def overtaken(path: Path) -> Any:
        if path.parent.name == "step-0000003":
            path.parent.rename(kept.folder / "damaged-step-0000003")
        return read(path)

    monkeypatch.setattr(checkpoints, "read_json", overtaken)
    restored = kept.restore()
    assert restored is not None and restored.progress.step == 2
    assert names(kept) == ["damaged-step-0000003", "step-0000002"]


# --- not ours -------------------------------------------------------------------------------


def rewrite(folder: Path, **changes: Any) -> None:
    """Change a state as somebody would who also makes its checksum right."""
    state = read_json(folder / "state.json") | changes
    state.pop("checksum")
    write_json(folder / "state.json", state | {"checksum": fingerprint(state)})


def test_another_run_is_refused(kept: Checkpoints) -> None:
    other = Checkpoints(kept.folder, "other", keep=2)
    with pytest.raises(CheckpointError, match=r"belongs to another run \(mine, not other\)"):
        other.restore()
    assert names(kept) == ["step-0000002", "step-0000003"]


@pytest.mark.parametrize("checksum", ["right", "of another kind", "none"])
def test_a_later_format_is_refused(kept: Checkpoints, checksum: str) -> None:
    """Whatever the later version does about checksums, it is not damage."""
    folder = newest(kept)
    if checksum == "right":
        rewrite(folder, format=99)
    else:
        later = {"format": 99, "parts": ["a", "b"]}
        if checksum == "of another kind":
            later = {"format": 99, "digest": "blake3:00"}
        write_json(folder / "state.json", later)
    with pytest.raises(CheckpointError, match="has format 99 and this version reads 2: use the"):
        kept.restore()
    assert names(kept) == ["step-0000002", "step-0000003"]


def test_the_first_format_is_refused(kept: Checkpoints) -> None:
    state = read_json(newest(kept) / "state.json")
    del state["checksum"]
    write_json(newest(kept) / "state.json", state | {"format": 1})
    with pytest.raises(CheckpointError, match="has format 1 and this version reads 2"):
        kept.restore()


def test_a_format_changed_by_damage_is_damage(kept: Checkpoints) -> None:
    path = newest(kept) / "state.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    restored = kept.restore()
    assert restored is not None and restored.progress.step == 2


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    """A whole checkpoint of a wider model, under this run's identity."""
    other = nn.Linear(5, 2)
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.1)
    other(torch.ones(1, 5)).sum().backward()
    optimizer.step()
    kept = Checkpoints(tmp_path, "mine", 1)
    kept.save(Progress(1, {}), tensors_of(other, optimizer))
    restored = kept.restore()
    assert restored is not None
    module, own = learnt(0)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weights, moments = restored.tensors["weights"], restored.tensors["optimizer"]
    where = str(restored.folder)
    with pytest.raises(CheckpointError, match=r"step-0000001.*weight \(2, 5\) instead of \(2, 3\)"):
        load_full_state(module, own, weights, moments, where)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    with pytest.raises(
        CheckpointError, match=r"step-0000001 does not fit the optimiser: 0\.\w+ is \(2, 5\) inste"
    ):
        load_optimizer_tensors(own, moments, where)
    assert optimizer_tensors(own) == {}


@pytest.mark.parametrize("key", ["2.exp_avg", "exp_avg", "1.", ".step", "-1.step"])
def test_tensors_of_parameters_that_are_not_there_are_refused(key: str) -> None:
    _, optimizer = learnt(0)
    with pytest.raises(CheckpointError, match="instead of nothing"):
        load_optimizer_tensors(optimizer, {key: torch.zeros(2)}, "here")


# --- disks ----------------------------------------------------------------------------------


@contextmanager
def files_end_at(length: int) -> Iterator[None]:
    """The kernel refuses to make any file of this process longer than `length` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def big(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"weights": {"w": torch.full((10,), float(step))}, "optimizer": {"m": torch.ones(9999)}}


def test_a_file_that_cannot_grow_leaves_nothing_half_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Checkpoints(tmp_path / "checkpoints", "mine", 2)
    kept.save(Progress(1, {}), big(1))
    kept.wait()
    with files_end_at(10_000):  # room for the weights, none for the optimiser's tensors
        kept.save(Progress(2, {}), big(2))
        kept.join()
    assert "the state after step 2 could not be written" in caplog.text
    assert "Training goes on; the newest saved: step-0000001" in caplog.text
    assert names(kept) == ["step-0000001"]
    with pytest.raises(CheckpointError, match=r"step 2 .*File too large.*free some space"):
        kept.wait()
    kept.save(Progress(3, {}), big(3))
    kept.wait()  # the last one is there: all is well
    restored = kept.restore()
    assert restored is not None and restored.progress.step == 3
    assert names(kept) == ["step-0000001", "step-0000003"]


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    kept = Checkpoints(tmp_path / "file" / "checkpoints", "mine", 1)
    assert kept.restore() is None
    kept.save(Progress(1, {}), big(1))
    with pytest.raises(CheckpointError, match="step 1 could not be written"):
        kept.wait()
    assert "the newest saved: none" in caplog.text


class FullDisk:
    """Has no room at the saves of certain steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
        self.refused: list[int] = []
        self._write = checkpoints.write_json
        self._steps = range(first, last + 1)
        monkeypatch.setattr(checkpoints, "write_json", self)

    def __call__(self, path: Path, state: dict[str, Any]) -> None:
        if state["step"] in self._steps:
            self.refused.append(state["step"])
            path.write_text("{")  # as much as there was room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._write(path, state)


def test_a_run_outlives_a_full_disk(
    tmp_path: Path, trained: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FullDisk(monkeypatch, 10, 20)
    trainer = make_trainer(tmp_path)
    trainer.run()
    assert disk.refused == list(range(10, 21))
    assert torch.equal(weights(trainer), trained)
    assert "No space left on device" in caplog.text and "newest saved: step-0000009" in caplog.text
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept[-1] == "step-0000040" and all(name.startswith("step-") for name in kept)


def test_a_run_whose_last_state_is_lost_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(monkeypatch, 30, 40)
    with pytest.raises(CheckpointError, match="the state after step 40 could not be written"):
        make_trainer(tmp_path).run()
    assert Checkpoints(tmp_path / "checkpoints", "plane", 2).newest_step() == 29
