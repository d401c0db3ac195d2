"""Champion and challenger at one exam: when it is held, when it cannot be, and what is written."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from mae.files import write_json
from mae.params import Params
from mae.params.orchestration import ComparisonParams
from pipelines import reference
from pipelines.comparison import EXAM, hold, read_result
from pipelines.decision import Comparison, NotCompared
from tests.small_project import pretrained_project

ENCODER = Path("artifacts/pretrain")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("compared")
    params = pretrained_project(root)
    (root / "data/reference").mkdir(exist_ok=True)
    return root, params


@pytest.fixture
def params(made: tuple[Path, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    root, params = made
    shutil.copytree(root, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return params


def set_exam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["reference"])
    reference.main()


def test_the_same_encoder_twice_is_a_draw(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    set_exam(monkeypatch)
    found = hold(params, ENCODER, ENCODER)
    assert isinstance(found, Comparison)
    assert found.champion_accuracy == found.challenger_accuracy
    assert (found.difference, found.win_share) == (0.0, 0.0)
    assert found.images == found.exam["images"] == len(json.loads(EXAM.read_text())["images"])
    write_json(Path("out.json"), asdict(found))
    assert read_result(Path("out.json")) == found


def test_what_stands_in_the_way_is_said(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    none = hold(params, ENCODER, ENCODER)
    assert isinstance(none, NotCompared)
    assert not none.refused
    assert "no labelled test images" in none.reason

    set_exam(monkeypatch)
    broken = Path("broken")
    shutil.copytree(ENCODER, broken)
    (broken / "encoder.safetensors").write_bytes(b"cut")
    lost = hold(params, broken, ENCODER)
    assert isinstance(lost, NotCompared)
    assert lost.refused
    assert "broken/encoder.safetensors is not a whole safetensors file" in lost.reason
    write_json(Path("out.json"), asdict(lost))
    assert read_result(Path("out.json")) == lost

    shutil.rmtree("data/shards/images")
    assert not hold(params, ENCODER, ENCODER).refused  # type: ignore[union-attr]


def test_resamples_and_confidence_are_those_of_the_parameters(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_exam(monkeypatch)
    rule = ComparisonParams(resamples=50, confidence=0.75)
    gate = params.retrain.gate.model_copy(update={"comparison": rule, "margin": -0.5})
    retrain = params.retrain.model_copy(update={"gate": gate})
    found = hold(params.model_copy(update={"retrain": retrain}), ENCODER, ENCODER)
    assert isinstance(found, Comparison)
    assert (found.resamples, found.confidence, found.margin) == (50, 0.75, -0.5)
    assert found.win_share == 1.0
