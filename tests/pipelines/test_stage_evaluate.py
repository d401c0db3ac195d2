import json
import math
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from mae.data.sharding.run import shard_dataset
from mae.errors import ParamsError
from mae.model.artifact import save_artifact
from mae.model.autoencoder import build_autoencoder
from mae.params import Params, parse_params, read_params
from mae.params.evaluation import Protocol
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
    evaluation = content["evaluate"]
    evaluation["knn"]["k"] = [1, 5]
    evaluation["minival"] = 0.25
    evaluation["linear_probe"] |= {"epochs": 3, "batch": 8, "seeds": 1}
    evaluation["few_shot"] |= {"shots": [1, 5], "draws": 2}
    budget = {"labels_per_class": 5, "epochs": 2, "seeds": 1}
    evaluation["finetune"] |= {"budgets": [budget], "batch": 8}
    evaluation["partial"] |= {**budget, "blocks": [0, 1]}
    evaluation["lora"] |= {**budget, "rank": 2}
    evaluation["label_budget"] |= {"shares": [0.2, 1.0], "seeds": 2}
    evaluation["robustness"] |= {"severities": [3]}
    evaluation["test_time"] |= {"images": 4, "steps": 1, "views": 2}
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
    assert result["context"]["params"]["evaluate.knn"]["k"] == [1, 5]
    assert result["encoder"]["architecture"]["dim"] == 32


@pytest.mark.parametrize("protocol", get_args(Protocol))
def test_every_protocol_leaves_its_files(params: Params, protocol: str) -> None:
    evaluate.main(params, [protocol])
    numbers = read(f"artifacts/metrics/{protocol}.json")
    assert numbers and all(math.isfinite(value) for value in numbers.values())
    result = read(f"artifacts/results/{protocol}.json")
    assert result["skipped"] is None and result["numbers"] == numbers
    for compared in result["comparisons"]:
        assert compared["pretrained"] and compared["values"]
        assert all(0 <= value <= 1 for value in compared["pretrained"] + compared["values"])
    assert Path(f"artifacts/plots/{protocol}").is_dir()


def test_a_skipped_protocol_says_so_in_both_files(params: Params) -> None:
    for folder in Path("images").glob("*/light"):
        shutil.rmtree(folder)
    shard_dataset("images", params.data, params.seed, Path("data/shards/images"))
    evaluate.main(params, ["linear_probe"])
    assert read("artifacts/metrics/linear_probe.json") == {"skipped": 1}
    assert "no labels" in read("artifacts/results/linear_probe.json")["skipped"]


@pytest.mark.parametrize("arguments", [[], ["kmeans"], ["knn", "finetune"]])
def test_an_unknown_protocol_lists_those_there_are(params: Params, arguments: list[str]) -> None:
    with pytest.raises(ParamsError, match="one protocol of knn, linear,"):
        evaluate.main(params, arguments)
