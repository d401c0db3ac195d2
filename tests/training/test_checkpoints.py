from pathlib import Path

import pytest
import torch
from torch import nn

from mae.errors import CheckpointError
from mae.files import read_json, write_json
from mae.training.checkpoints import Checkpoints, Progress


def learnt(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(steps):
        module(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoints", "mine", keep=2)
    for step in (1, 2, 3):
        checkpoints.save(Progress(step, {"sums": {"loss": 0.1 + 0.2}}), *learnt(step))
    return checkpoints


def test_the_newest_is_restored_exactly(checkpoints: Checkpoints) -> None:
    module, optimizer = learnt(0)
    progress = checkpoints.restore(module, optimizer)
    assert progress == Progress(3, {"sums": {"loss": 0.1 + 0.2}})
    expected_module, expected = learnt(3)
    assert torch.equal(module.weight, expected_module.weight)  # type: ignore[arg-type]
    for parameter, twin in zip(module.parameters(), expected_module.parameters(), strict=True):
        for name, value in expected.state[twin].items():
            assert torch.equal(optimizer.state[parameter][name], value)


def test_only_the_newest_stay(checkpoints: Checkpoints) -> None:
    assert sorted(f.name for f in checkpoints.folder.iterdir()) == ["step-0000002", "step-0000003"]


def test_no_file_is_a_pickle(checkpoints: Checkpoints) -> None:
    suffixes = {file.suffix for file in checkpoints.folder.rglob("*") if file.is_file()}
    assert suffixes == {".safetensors", ".json"}


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_one_is_passed_over(checkpoints: Checkpoints, name: str, damage: str) -> None:
    path = checkpoints.folder / "step-0000003" / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-9])
    progress = checkpoints.restore(*learnt(0))
    assert progress is not None
    assert progress.step == 2


def test_a_half_written_one_is_not_taken_for_whole(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / ".step-0000004.1.tmp").mkdir()
    progress = checkpoints.restore(*learnt(0))
    assert progress is not None
    assert progress.step == 3


def test_foreign_ones_are_refused(checkpoints: Checkpoints) -> None:
    other = Checkpoints(checkpoints.folder, "other", keep=2)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        other.restore(*learnt(0))
    path = checkpoints.folder / "step-0000003" / "state.json"
    write_json(path, read_json(path) | {"format": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoints.restore(*learnt(0))


def test_nothing_saved_is_a_fresh_start(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", "mine", keep=1).restore(*learnt(0)) is None
