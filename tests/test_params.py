import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mae.errors import ParamsError
from mae.params import MaskParams, OptimParams, parse_params, read_params

ROOT = Path(__file__).parents[1]


@pytest.fixture
def content() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def fault(content: dict[str, Any]) -> str:
    with pytest.raises(ParamsError) as caught:
        parse_params(content)
    return str(caught.value)


def test_the_committed_parameters_are_valid() -> None:
    params = read_params(ROOT / "params.yaml")
    assert params.model.patch_size == (4, 4)
    with pytest.raises(ValueError, match="frozen"):
        params.model.mask.ratio = 0.5


def test_unknown_keys_are_refused_with_the_nearest(content: dict[str, Any]) -> None:
    content["pretrain"]["wieght_decay"] = 0.1
    content["evaluate"]["finetune"]["budgets"][0]["label_per_class"] = 3
    content["modle"] = {}
    message = fault(content)
    assert "pretrain.wieght_decay: unknown key; did you mean 'weight_decay'?" in message
    assert "budgets.0.label_per_class: unknown key; did you mean 'labels_per_class'?" in message
    assert "modle: unknown key; did you mean 'model'?" in message


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("model.patch", 5, "24 x 24 cannot be cut into patches of 5 x 5"),
        ("model.patch", [4, 48], "cannot be cut into patches of 4 x 48"),
        ("model.mask.ratio", 1.0, "less than 1"),
        ("model.mask.ratio", 0.99, "keeps 0 of 36"),
        ("model.heads", 5, "not a multiple of its 5 heads"),
        ("model.decoder.width", 66, "not a multiple"),
        ("seed", "zero", "valid integer"),
        ("pretrain.batch", True, "valid integer"),
        ("pretrain.blr", 0, "greater than 0"),
        ("pretrain.accumulate", 7, "not a multiple of accumulate 7"),
        ("pretrain.augment.crop_area", [0.9, 0.2], "must rise"),
        ("pretrain.augment.crop_area", [0.2, 1.2], "end at 1"),
        ("pretrain.ema", 1.0, "less than 1"),
        ("pretrain.divergence.spike", 0.5, "greater than 1"),
        ("runtime.trackers", ["wandb"], "tensorboard"),
        ("runtime.launch.sharding", "zero", "fsdp"),
        ("evaluate.protocols", [], "at least 1"),
        ("evaluate.protocols", ["knm"], "knn"),
        ("evaluate.baselines", {"random": "x"}, "a name of our own"),
        ("evaluate.baselines", {"a b": "x"}, "letters, digits"),
        ("evaluate.minival", 1.0, "less than 1"),
        ("evaluate.linear_probe.batch", 1, "greater than or equal to 2"),
        ("evaluate.robustness.severities", [6], "less than or equal to 5"),
        ("evaluate.finetune.blr", [], "at least 1"),
        ("data.images.path", "somewhere", "takes none"),
        ("data.images.source", "folder", "needs a path"),
        ("data.splits.test", 0.95, "stay below 1"),
        ("runtime.device", "gpu", "'auto', 'cpu' or 'cuda'"),
    ],
)
def test_impossible_values_are_refused(
    content: dict[str, Any], path: str, value: Any, says: str
) -> None:
    *sections, key = path.split(".")
    target = content
    for section in sections:
        target = target[section]
    target[key] = value
    message = fault(content)
    assert says in message
    assert path.split(".")[0] in message


def test_every_fault_is_reported_at_once(content: dict[str, Any]) -> None:
    content["seed"] = -1
    content["pretrain"]["epochs"] = 0
    del content["export"]["opset"]
    message = fault(content)
    assert all(key in message for key in ("seed", "pretrain.epochs", "export.opset: missing"))


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path, content: dict[str, Any]) -> None:
    text = (ROOT / "params.yaml").read_text().replace("blr: 4.0e-3", "blr: 4e-3")
    assert "blr: 4e-3" in text
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert read_params(path).pretrain.blr == 4e-3


@pytest.mark.parametrize("text", ["a: [", "just words", ""])
def test_what_is_no_parameter_file_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=r"params\.yaml"):
        read_params(path)
    with pytest.raises(ParamsError, match="does not exist"):
        read_params(tmp_path / "absent.yaml")


def optim(**changes: Any) -> OptimParams:
    values = {
        "epochs": 10,
        "batch": 256,
        "blr": 1e-3,
        "weight_decay": 0.05,
        "warmup_epochs": 2,
        "precision": "fp32",
    }
    return OptimParams(**(values | changes))


def test_resolved_numbers() -> None:
    assert optim(batch=4096).lr(1_281_167) == pytest.approx(1e-3 * 16)
    assert optim(batch=4096).total_steps(1_281_167) == 10 * 312
    # A set smaller than one batch: one step an epoch, and the rate of the batch there is.
    assert optim().total_steps(64) == 10
    assert optim().lr(64) == pytest.approx(1e-3 / 4)
    assert "effective batch 64" in optim().describe(64)
    # Warm-up never takes more than a quarter of a short run.
    assert optim(warmup_epochs=9).warmup_steps(2560) == 25


@given(st.integers(2, 5000), st.floats(0.01, 0.99))
def test_kept_patches_follow_the_ratio(patches: int, ratio: float) -> None:
    kept = MaskParams(kind="random", ratio=ratio).kept(patches)
    assert -1e-5 <= patches * (1 - ratio) - kept < 1


def test_kept_patches_of_published_settings() -> None:
    assert MaskParams(kind="random", ratio=0.75).kept(196) == 49
    assert MaskParams(kind="random", ratio=0.9).kept(10) == 1


def test_parsing_does_not_change_its_input(content: dict[str, Any]) -> None:
    before = copy.deepcopy(content)
    parse_params(content)
    assert content == before
