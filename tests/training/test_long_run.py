"""Five thousand steps through real shards: memory and open files stay where they are."""

from pathlib import Path

import psutil
import pytest
import torch

from mae.data.sharding.run import shard_dataset
from mae.model.methods import PretrainingModel
from mae.params import parse_params
from mae.training.devices import Place
from mae.training.pretraining import pretrain
from tests.small_project import small_params, write_images

STEPS = 5000


@pytest.mark.slow
def test_neither_memory_nor_open_files_grow(tmp_path: Path) -> None:
    write_images(tmp_path / "source")
    content = small_params(tmp_path / "source").model_dump(mode="json", by_alias=True)
    content["pretrain"] |= {"batch": 4, "precision": "fp32", "warmup_epochs": 0}
    content["runtime"] |= {
        "log_every": 5,
        "checkpoint_minutes": 0.005,
        "observe": {"every_epochs": 1, "images": 8, "knn": False},
    }
    params = parse_params(content)
    info = shard_dataset("images", params.data, 0, tmp_path / "shards")
    per_epoch = params.pretrain.steps_per_epoch(info.splits["train"])
    content["pretrain"]["epochs"] = STEPS // per_epoch
    process = psutil.Process()
    seen: list[tuple[int, int, int]] = []

    def look(model: PretrainingModel, step: int, folder: Path) -> dict[str, float]:
        files = process.num_fds()
        seen.append((step, process.memory_info().rss, files))
        return {"files": float(files)}

    pretrain(
        parse_params(content),
        tmp_path / "shards",
        tmp_path / "runs",
        Place(torch.device("cpu")),
        look,
    )
    assert seen[-1][0] >= STEPS - per_epoch
    # The first fifth fills caches and pools.
    early = [row for row in seen if STEPS // 5 < row[0] <= 2 * STEPS // 5]
    late = [row for row in seen if row[0] > 4 * STEPS // 5]
    grown = max(row[1] for row in late) - max(row[1] for row in early)
    assert grown < 16e6, f"{grown / 1e6:.1f} MB more after {STEPS} steps"
    # A checkpoint that is just being written has some files open.
    assert max(row[2] for row in late) < max(row[2] for row in early) + 5
