"""The stages shard and validate, as DVC runs them but in this process."""

import json
from pathlib import Path
from typing import Any

import pytest

from mae.errors import DataError, ParamsError
from mae.params import ImagesParams, Params, ScenesParams, read_params
from pipelines.stages import shard, validate
from tests.data import zoo


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("x", "y"):
        zoo.write_images(tmp_path / "source" / name, 60)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def params(**changes: Any) -> Params:
    defaults = read_params(Path(__file__).parents[2] / "params.yaml")
    sources = {
        "images": ImagesParams(source="folder", path="source"),
        "scenes": ScenesParams(source="none"),
    }
    bounds = defaults.validate_.model_copy(update={"min_images": 100, **changes})
    data = defaults.data.model_copy(update={**sources, "channels": 1, "bit_depth": 8})
    return defaults.model_copy(update={"data": data, "validate_": bounds})


def test_shard_then_validate(workplace: Path) -> None:
    for dataset in ("images", "scenes"):
        shard.main(params(), [dataset])
    validate.main(params(), [])
    metrics = json.loads(Path("artifacts/metrics/shard-images.json").read_text())
    assert metrics["seen"] == metrics["accepted"] == 120
    assert metrics["train"] + metrics["val"] + metrics["test"] == 120
    assert json.loads(Path("artifacts/metrics/shard-scenes.json").read_text())["seen"] == 0
    assert json.loads(Path("data/validation/verdict.json").read_text())["passed"] is True
    assert json.loads(Path("artifacts/metrics/validate.json").read_text())["passed"] == 1
    assert Path("artifacts/data_docs/index.html").is_file()

    with pytest.raises(DataError, match="accepted images is 120"):
        validate.main(params(min_images=121), [])
    assert json.loads(Path("data/validation/verdict.json").read_text())["passed"] is False
    assert json.loads(Path("artifacts/metrics/validate.json").read_text())["passed"] == 0


def test_a_verdict_does_not_outlive_its_data(workplace: Path) -> None:
    verdict = Path("data/validation/verdict.json")
    verdict.parent.mkdir(parents=True)
    verdict.write_text('{"passed": true}')
    with pytest.raises(DataError, match="holds no dataset"):
        validate.main(params(), [])
    assert not verdict.exists()


@pytest.mark.parametrize("arguments", [[], ["pictures"], ["images", "scenes"]])
def test_shard_says_how_it_is_called(workplace: Path, arguments: list[str]) -> None:
    with pytest.raises(ParamsError, match="usage"):
        shard.main(params(), arguments)
