"""`mae data check`, `accept` and `inspect`, on datasets in the folder of a project."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from mae import cli
from mae.data.dataset import write_dataset_info
from mae.data.sharding.run import shard_dataset
from mae.data.validation.profile import Profile
from mae.errors import DataError, ParamsError
from mae.files import write_json
from tests.data import zoo
from tests.data.made_manifest import Made, change, make_dataset

PARAMS = str(Path(__file__).parents[1] / "params.yaml")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_dataset(Path("data/shards/images"), Made(rows=600))
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["data", *arguments])


def test_check_says_what_is_wrong_the_worst_first(project: Path) -> None:
    sound = invoke("check", "--params", PARAMS)
    assert sound.exit_code == 0, sound.output
    passed, total = sound.output.split(" checks")[0].split(" of ")
    assert passed == total

    info = make_dataset(Path("data/shards/images"), Made(rows=600, blank=0.2, quarantined=0.2))
    change(info, "width = 7 * height", "accepted AND key > '000000400'")
    faulty = invoke("check", "data/shards/images", "--params", PARAMS)
    assert faulty.exit_code == DataError.exit_code == 3
    lines = faulty.output.splitlines()
    assert [line.split()[0] for line in lines[:-1]][:2] == ["critical", "warning"]
    assert "the share of images quarantined is 0." in lines[0]
    assert "one value throughout" in lines[1]
    assert lines[-2].startswith("info")
    assert lines[-1].endswith("checks passed")


def test_check_names_what_was_skipped_and_what_is_missing(project: Path) -> None:
    scenes = make_dataset(Path("data/shards/scenes"), Made(rows=10), "scenes")
    write_dataset_info(replace(scenes, skipped="no scenes here"), scenes.folder)
    assert "scenes: not checked: no scenes here" in invoke("check", "--params", PARAMS).output
    absent = invoke("check", "elsewhere", "--params", PARAMS)
    assert isinstance(absent.exception, DataError)
    assert "elsewhere holds no dataset" in str(absent.exception)


def test_accept_and_check_against_it(project: Path) -> None:
    assert "run `dvc repro validate` first" in str(invoke("accept").exception)
    profile = Profile.of(make_dataset(Path("data/shards/images"), Made(rows=600)))
    write_json(Path("data/validation/profile-images.json"), profile.to_dict())
    said = invoke("accept").output
    assert "data/reference/images.json written: commit it" in said
    make_dataset(Path("data/shards/images"), Made(rows=600, brighter=0.2))
    moved = invoke("check", "--params", PARAMS)
    assert moved.exit_code == 0
    assert "warning   images: the drift of mean from the accepted data" in moved.output


def test_inspect_refuses_what_it_cannot_draw(project: Path) -> None:
    wrong = invoke("inspect", "data/shards/images", "--out", "picture.jpg")
    assert isinstance(wrong.exception, ParamsError)
    scenes = make_dataset(Path("data/shards/scenes"), Made(rows=10), "scenes")
    write_dataset_info(replace(scenes, skipped="no scenes here"), scenes.folder)
    empty = invoke("inspect", "data/shards/scenes")
    assert isinstance(empty.exception, DataError)
    assert "no scenes here" in str(empty.exception)


def test_inspect_draws_and_tells(tmp_path: Path) -> None:
    zoo.write_images(tmp_path / "source", 20)
    params = zoo.data_params(images=tmp_path / "source")
    info = shard_dataset("images", params, 0, tmp_path / "images")
    out = tmp_path / "inspect.png"
    said = invoke("inspect", str(info.folder), "--out", str(out))
    assert said.exit_code == 0, said.output
    assert "Brightness" in said.output
    assert Image.open(out).width == 1300
