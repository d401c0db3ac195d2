"""The losses of twenty steps of the whole loop, from shards to update.

A change that should not alter numbers must leave them as they are. After one that should, write
them anew with `python -m tests.training.test_golden_losses`, and say why.
"""

import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mae.data.digits import DRAWINGS, digit_images
from mae.data.sharding.run import shard_dataset
from mae.files import read_json, write_json
from mae.params import Params, parse_params, read_params
from mae.training.devices import Place
from mae.training.journal import read_journal
from mae.training.pretraining import pretrain

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "pretraining_losses.json"
STEPS = 20

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "accumulated, clipped, averaged": {"accumulate": 4, "clip_grad": 1.0, "ema": 0.9},
}


def params_of(source: Path, **pretraining: Any) -> Params:
    """The default parameters in float32 on the digits in `source`, for twenty steps."""
    content = read_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    content["data"]["images"] = {"source": "folder", "path": str(source)}
    content["pretrain"] |= {"epochs": 5, "batch": 32, "precision": "fp32", **pretraining}
    content["runtime"] |= {"device": "cpu", "workers": 2, "log_every": 1}
    return parse_params(content)


def write_digits(folder: Path) -> None:
    """Forty digits: 128 drawings to train on, 16 each to hold out and to test."""
    for index, record in enumerate(islice(digit_images(0), 40 * DRAWINGS)):
        split = ("val", "test", *("train",) * 8)[index // DRAWINGS % 10]
        path = folder / split / str(record.label) / Path(record.id).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.image.read())


def losses_of(root: Path, case: str) -> dict[str, list[float]]:
    params = params_of(root / "digits", **CASES[case])
    if not (root / "shards").exists():
        write_digits(root / "digits")
        shard_dataset("images", params.data, params.seed, root / "shards")
    done = pretrain(params, root / "shards", root / "runs", Place(torch.device("cpu")))
    lines = read_journal(done.folder)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return {name: [line[name] for line in lines] for name in ("loss", "grad_norm", "lr")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_what_they_were(root: Path, case: str) -> None:
    golden = read_json(GOLDEN)[case]
    found = losses_of(root, case)
    assert found["loss"] == pytest.approx(golden["loss"], rel=2e-5)
    assert found["grad_norm"] == pytest.approx(golden["grad_norm"], rel=1e-3)
    assert found["lr"] == pytest.approx(golden["lr"], rel=1e-12)


def write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_json(GOLDEN, {case: losses_of(Path(folder), case) for case in CASES})


if __name__ == "__main__":
    write()
