import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.data.sharding.run import shard_dataset
from mae.errors import ParamsError
from mae.model.artifact import save_artifact
from mae.model.autoencoder import build_autoencoder
from mae.params import Params, parse_params, read_params
from mae.pixels import PixelStatistics
from pipelines.stages import evaluate

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Parameters of a tiny project, which becomes the working directory, already pretrained."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name, grey in (("dark", 40), ("light", 200)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(12):
                pixels = (grey + rng.integers(0, 40, (32, 32))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    content = read_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    content["data"]["images"] = {"source": "folder", "path": str(tmp_path / "images")}
    content["model"] |= {"patch": 8, "dim": 32, "depth": 2, "heads": 2}
    params = parse_params(content)
    monkeypatch.chdir(tmp_path)
    shard_dataset("images", params.data, params.seed, Path("data/shards/images"))
    autoencoder = build_autoencoder(params.model, channels=1, seed=0)
    save_artifact(
        Path("artifacts/pretrain"), autoencoder, PixelStatistics((0.5,), (0.3,)), {"steps": 0}
    )
    return params


def read(path: str) -> dict:
    return json.loads(Path(path).read_text())


def test_writes_numbers_for_comparison_and_a_result_with_its_context(params: Params) -> None:
    evaluate.main(params, ["knn"])
    numbers = read("artifacts/metrics/knn.json")
    assert all(isinstance(value, int | float) for value in numbers.values())
    result = read("artifacts/results/knn.json")
    assert result["numbers"] == numbers
    assert result["skipped"] is None
    assert result["context"]["protocol"] == "knn"
    assert (
        result["context"]["data_fingerprint"]
        == read("data/shards/images/dataset.json")["fingerprint"]
    )
    assert result["context"]["params"]["evaluate.knn"]["k"] == [5, 10, 20]
    assert result["encoder"]["architecture"]["dim"] == 32


def test_a_skipped_protocol_says_so_in_both_files(params: Params) -> None:
    for folder in Path("images").glob("*/light"):
        shutil.rmtree(folder)
    shard_dataset("images", params.data, params.seed, Path("data/shards/images"))
    evaluate.main(params, ["linear_probe"])
    assert read("artifacts/metrics/linear_probe.json") == {"skipped": 1}
    assert "no labels" in read("artifacts/results/linear_probe.json")["skipped"]


@pytest.mark.parametrize("arguments", [[], ["kmeans"], ["knn", "finetune"]])
def test_an_unknown_protocol_lists_those_there_are(params: Params, arguments: list[str]) -> None:
    with pytest.raises(ParamsError, match="knn, linear_probe, finetune, detection"):
        evaluate.main(params, arguments)
