"""Bad data stops, good data passes, and the verdict's bytes depend on the data alone."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mae.data.dataset import DatasetInfo, read_dataset_info
from mae.data.expectations import Verdict, validate_datasets
from mae.data.sharding import shard_dataset
from mae.errors import DataError
from mae.files import write_json
from mae.params import ValidateParams
from tests.data import zoo
from tests.data.zoo import MakeParams

PARAMS = ValidateParams(
    min_images=100, max_quarantined=0.1, max_duplicates=0.1, max_leaked=0.0, min_per_class=2
)


def judge(info: DatasetInfo, folder: Path, **changes: float) -> Verdict:
    params = PARAMS.model_copy(update=changes)
    return validate_datasets(info, None, params, folder / "docs")


def sharded(folder: Path, make_params: MakeParams, **changes: object) -> DatasetInfo:
    params = make_params(images=folder / "source", **changes)
    return shard_dataset("images", params, 0, folder / "shards" / "images")


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    for name in ("x", "y"):
        zoo.write_images(tmp_path / "source" / name, 60)
    yield tmp_path / "source"


def test_sound_data_passes_with_bytes_that_do_not_change(
    small_shards: Path, tmp_path: Path
) -> None:
    info = read_dataset_info(small_shards)
    texts = []
    for _ in range(2):
        verdict = judge(info, tmp_path)
        verdict.demand_passed()
        write_json(tmp_path / "verdict.json", verdict.to_dict())
        texts.append((tmp_path / "verdict.json").read_bytes())
    assert texts[0] == texts[1]
    content = json.loads(texts[0])
    assert content["passed"] is True
    assert content["fingerprints"] == {"images": info.fingerprint}
    assert {one["severity"] for one in content["expectations"]} == {"critical", "warning", "info"}
    names = {"dataset", "expectation", "column", "severity", "success", "observed", "limit"}
    assert all(names <= set(one) for one in content["expectations"])


def test_data_docs_are_built(small_shards: Path, tmp_path: Path) -> None:
    judge(read_dataset_info(small_shards), tmp_path)
    assert (tmp_path / "docs" / "index.html").is_file()
    assert list((tmp_path / "docs").rglob("images-accepted.html"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_images": 151}, "number of accepted images is 150 .at least 151."),
        ({"min_per_class": 80}, "smallest class"),
    ],
)
def test_bounds_of_params_stop(
    small_shards: Path, tmp_path: Path, changes: dict[str, float], message: str
) -> None:
    verdict = judge(read_dataset_info(small_shards), tmp_path, **changes)
    assert not verdict.passed
    assert verdict.to_dict()["passed"] is False
    with pytest.raises(DataError, match=message):
        verdict.demand_passed()


def test_too_many_quarantined_stop(source: Path, tmp_path: Path, make_params: MakeParams) -> None:
    for number in range(30):
        (source / "x" / f"bad{number}.png").write_bytes(b"no image")
    info = sharded(tmp_path, make_params)
    with pytest.raises(DataError, match=r"share of images quarantined is 0\.2 \(at most 0\.1\)"):
        judge(info, tmp_path).demand_passed()
    judge(info, tmp_path, max_quarantined=0.2).demand_passed()


def test_copies_and_leaks_stop(source: Path, tmp_path: Path, make_params: MakeParams) -> None:
    image = zoo.png(zoo.pattern(32, 24, 1))
    for number in range(30):
        (source / "x" / f"copy{number}.png").write_bytes(image)
    with pytest.raises(DataError) as caught:
        judge(sharded(tmp_path, make_params), tmp_path).demand_passed()
    assert "share of images with the bytes of another is 0.193333" in str(caught.value)
    assert "with the bytes of a train image" in str(caught.value)


def test_leaks_between_given_splits_stop(tmp_path: Path, make_params: MakeParams) -> None:
    for split, count in (("train", 120), ("val", 20), ("test", 20)):
        zoo.write_images(tmp_path / "source" / split, count)
    leaked = (tmp_path / "source" / "train" / "0000.png").read_bytes()
    (tmp_path / "source" / "test" / "0003.png").write_bytes(leaked)
    info = sharded(tmp_path, make_params)
    with pytest.raises(DataError, match=r"train image is 0\.025 \(at most 0\.0\)"):
        judge(info, tmp_path).demand_passed()
    judge(info, tmp_path, max_leaked=0.03).demand_passed()


def test_an_empty_split_stops(source: Path, tmp_path: Path, make_params: MakeParams) -> None:
    info = sharded(tmp_path, make_params, splits={"val": 0.0, "test": 0.2})
    with pytest.raises(DataError, match=r"splits that hold images is train, test"):
        judge(info, tmp_path).demand_passed()


def test_a_class_without_training_images_stops(
    source: Path, tmp_path: Path, make_params: MakeParams
) -> None:
    (source / "empty").mkdir()
    info = sharded(tmp_path, make_params)
    assert info.classes == ("empty", "x", "y")
    with pytest.raises(DataError, match=r"smallest class is 0 \(at least 2\)"):
        judge(info, tmp_path).demand_passed()
    judge(info, tmp_path, min_per_class=0).demand_passed()


def test_unlabelled_images_need_no_classes(tmp_path: Path, make_params: MakeParams) -> None:
    zoo.write_images(tmp_path / "source", 120)
    judge(sharded(tmp_path, make_params), tmp_path).demand_passed()


def test_what_is_odd_but_usable_is_a_warning_only(
    source: Path, tmp_path: Path, make_params: MakeParams
) -> None:
    for number in range(20):
        flat = np.full((32, 24, 1), number, np.uint8)
        (source / f"blank{number}.png").write_bytes(zoo.png(flat))
    verdict = judge(sharded(tmp_path, make_params), tmp_path)
    assert verdict.passed
    subjects = {finding.subject for finding in verdict.failures("warning")}
    assert subjects == {
        "the share of images of one value throughout",
        "the share of images without a label",
    }


def test_scenes_are_judged_and_skipped_ones_are_not(
    small_shards: Path, tmp_path: Path, make_params: MakeParams
) -> None:
    images = read_dataset_info(small_shards)
    for source, judged in (("digits", {"images", "scenes"}), ("none", {"images"})):
        params = make_params(scenes={"source": source})
        scenes = shard_dataset("scenes", params, 0, tmp_path / "scenes")
        verdict = validate_datasets(images, scenes, PARAMS, tmp_path / "docs")
        assert verdict.passed
        assert set(verdict.fingerprints) == judged
        assert {finding.dataset for finding in verdict.findings} == judged


@pytest.mark.slow
def test_real_nuclei_are_fit_for_training(
    small_shards: Path, tmp_path: Path, make_params: MakeParams, real_data: Path
) -> None:
    params = make_params(scenes=real_data / "nuclei", channels=3)
    scenes = shard_dataset("scenes", params, 0, tmp_path / "scenes")
    images = read_dataset_info(small_shards)
    validate_datasets(images, scenes, PARAMS, tmp_path / "docs").demand_passed()


def test_a_verdict_is_read_back_and_binds_to_its_data(
    source: Path, tmp_path: Path, make_params: MakeParams
) -> None:
    info = sharded(tmp_path, make_params)
    verdict = judge(info, tmp_path)
    path = tmp_path / "verdict.json"
    write_json(path, verdict.to_dict())
    assert Verdict.read(path) == verdict
    verdict.demand_valid(info)
    with pytest.raises(DataError, match="changed since they were validated"):
        verdict.demand_valid(replace(info, fingerprint="other"))
    with pytest.raises(DataError, match="run `dvc repro validate` first"):
        Verdict.read(tmp_path / "absent.json")
