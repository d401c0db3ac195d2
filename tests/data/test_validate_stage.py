"""The stage `validate` as DVC runs it: exit codes, profiles, and the stop where data have moved."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mae.data.dataset import write_dataset_info
from mae.data.validation.drift import accept
from mae.params import parse_params
from pipelines.stages import validate
from tests.data.made_manifest import Made, make_dataset

ROOT = Path(__file__).parents[2]
REFERENCES, VALIDATION = Path("data/reference"), Path("data/validation")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images, and scenes that are as good as skipped: there are none."""
    monkeypatch.chdir(tmp_path)
    write(Made(rows=1500))
    return tmp_path


def write(made: Made) -> None:
    from dataclasses import replace

    make_dataset(Path("data/shards/images"), made)
    scenes = make_dataset(Path("data/shards/scenes"), Made(rows=10), "scenes")
    write_dataset_info(replace(scenes, skipped="there are none"), scenes.folder)


def content(**drift: Any) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "params.yaml").read_text())
    found["validate"]["drift"] |= drift
    return found


def run(**drift: Any) -> None:
    validate.main(parse_params(content(**drift)), [])


def test_equal_data_and_reference_give_equal_files(workplace: Path) -> None:
    texts = []
    for _ in range(2):
        run()
        texts.append({path.name: path.read_bytes() for path in VALIDATION.iterdir()})
    assert set(texts[0]) == {"verdict.json", "profile-images.json", "profile-scenes.json"}
    assert texts[0] == texts[1]
    assert json.loads(texts[0]["profile-scenes.json"])["skipped"] == "there are none"
    accept(VALIDATION, REFERENCES)
    run()
    assert {path.name: path.read_bytes() for path in VALIDATION.iterdir()} == texts[0]
    metrics = json.loads(Path("artifacts/metrics/validate.json").read_text())
    assert metrics["drift_images_mean"] == 0
    assert metrics["passed"] == 1


def test_data_that_have_moved_stop_with_exit_code_3(workplace: Path) -> None:
    run()
    accept(VALIDATION, REFERENCES)
    write(Made(rows=1500, seed=1, brighter=0.1))
    run()
    verdict = json.loads((VALIDATION / "verdict.json").read_text())
    (finding,) = [one for one in verdict["expectations"] if not one["success"]]
    assert (finding["column"], finding["severity"]) == ("mean", "warning")

    Path("params.yaml").write_text(yaml.safe_dump(content(severity="critical")))
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.stages.validate"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 3, done.stderr
    assert "the drift of mean from the accepted data" in done.stderr
    assert "`mae data accept`" in done.stderr
    assert json.loads((VALIDATION / "verdict.json").read_text())["passed"] is False

    accept(VALIDATION, REFERENCES)
    run(severity="critical")
    assert json.loads((VALIDATION / "verdict.json").read_text())["passed"] is True
