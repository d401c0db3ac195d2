"""Bad data stops, good data passes, and the verdict's bytes depend on the data alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mae.data.dataset import DatasetInfo, read_dataset_info
from mae.data.sharding.run import shard_dataset
from mae.data.validation.expectations import check_datasets, validate_datasets
from mae.data.validation.verdict import SEVERITIES, Verdict
from mae.errors import DataError
from mae.files import write_json
from mae.params import ValidateParams, read_params
from mae.params.validation import SeverityParams
from tests.data import zoo
from tests.data.made_manifest import Made, change, make_dataset
from tests.data.zoo import MakeParams

PARAMS = read_params(Path(__file__).parents[2] / "params.yaml").validate_
NOWHERE = Path("/nowhere")


def judge(*infos: DatasetInfo, references: Path = NOWHERE, **changes: Any) -> Verdict:
    return check_datasets(infos, PARAMS.model_copy(update=changes), references).verdict


@pytest.fixture
def made(tmp_path: Path) -> DatasetInfo:
    return make_dataset(tmp_path / "made", Made(rows=1000))


def failures(verdict: Verdict, severity: Any) -> list[tuple[str, Any]]:
    return [(one.subject, one.observed) for one in verdict.failures(severity)]


def test_sound_data_pass_with_bytes_that_do_not_change(small_shards: Path, tmp_path: Path) -> None:
    info = read_dataset_info(small_shards)
    texts = []
    for number in range(2):
        found = validate_datasets([info], PARAMS, NOWHERE, tmp_path / "docs")
        found.verdict.demand_passed()
        write_json(tmp_path / "verdict.json", found.verdict.to_dict())
        write_json(tmp_path / f"profile{number}.json", found.profiles["images"])
        texts.append((tmp_path / "verdict.json").read_bytes())
    assert texts[0] == texts[1]
    profiles = [(tmp_path / f"profile{number}.json").read_text() for number in range(2)]
    assert profiles[0] == profiles[1]
    content = json.loads(texts[0])
    assert content["passed"] is True
    assert content["fingerprints"] == {"images": info.fingerprint}
    assert {one["severity"] for one in content["expectations"]} == set(SEVERITIES)


def test_data_docs_are_built(made: DatasetInfo, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    validate_datasets([made], PARAMS, NOWHERE, docs)
    assert (docs / "index.html").is_file()
    pages = {path.stem for path in (docs / "expectations").glob("*.html")}
    assert pages == {
        f"images-{name}" for name in ("overall", "splits", "classes", "reasons", "sample")
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_images": 1001}, r"number of accepted images is 9\d\d .at least 1001."),
        ({"min_per_class": 100}, "smallest class"),
        ({"max_quarantined": 0.001}, "share of images quarantined"),
        (
            {"max_imbalance": 1.01, "severity": SeverityParams(max_imbalance="critical")},
            "largest class, to one of the smallest",
        ),
    ],
)
def test_bounds_of_params_stop(made: DatasetInfo, changes: dict[str, Any], message: str) -> None:
    verdict = judge(made, **changes)
    assert not verdict.passed
    assert verdict.to_dict()["passed"] is False
    with pytest.raises(DataError, match=message):
        verdict.demand_passed()


# What is done to which rows of a sound manifest, what is then said and how severely.
FAULTS: dict[str, tuple[str, str, str, str]] = {
    "blank": ("blank = true", "key > '000000850'", "warning", "one value throughout"),
    "dark": ("mean = 0.001", "key > '000000850'", "warning", "brightness is not within"),
    "plain": ("entropy = 0.01", "key > '000000850'", "warning", "entropy is not within"),
    "long": ("width = 10 * height", "key > '000000850'", "info", "aspect is not within"),
    "unlabelled": ("label = NULL", "key > '000000990'", "warning", "without a label"),
    "no class": ("label = 'other'", "key > '000000990'", "critical", "whose label is no class"),
    "no train": ("split = 'val'", "label = 'class00003'", "critical", "training images in the sm"),
    "no test": (
        *("split = 'train'", "label = 'class00003' AND split = 'test'"),
        *("warning", "number of test images in the smallest class"),
    ),
    "no split": ("split = 'train'", "split = 'val'", "critical", "splits that hold images"),
    "copies": (
        *("sha256 = repeat('a', 64)", "key > '000000850'"),
        *("critical", "share of images with the bytes of another"),
    ),
    "leak": (
        *("sha256 = repeat('a', 64)", "key IN (KEYS)"),
        *("critical", "bytes of a train image"),
    ),
    "alike": (
        *("near_duplicate_of = '000000001.jpg'", "key > '000000400'"),
        *("warning", "share of images that look like another"),
    ),
    "near leak": (
        *("near_duplicate_of = '000000001.jpg'", "key > '000000700'"),
        *("warning", "look like a train image"),
    ),
    "set aside": (
        *("accepted = false, reason = 'duplicate'", "key > '000000400'"),
        *("warning", "set aside by choice"),
    ),
    "same name": ("key = '000000500.jpg'", "key = '000000502.jpg'", "critical", "share a name"),
    "same place": ("slot = 500", "key = '000000502.jpg'", "critical", "share a place"),
    "no bytes": ("sha256 = NULL", "key = '000000502.jpg'", "critical", "without sha256"),
    "no name": ("key = ''", "key = '000000502.jpg'", "critical", "inputs without a name"),
    "small": ("height = 7", "key = '000000502.jpg'", "critical", "side below data.min_side"),
    "large": ("height = 900000", "key = '000000502.jpg'", "critical", "above data.max_pixels"),
    "bright": ("mean = 1.5", "key = '000000502.jpg'", "critical", "impossible mean"),
    "turned": ("orientation = 9", "key = '000000502.jpg'", "critical", "impossible orientation"),
    "hash": ("sha256 = 'a'", "key = '000000502.jpg'", "critical", "impossible sha256"),
    "grey": ("channels = 1", "key = '000000502.jpg'", "info", "another channels"),
    "reason": ("reason = 'bored'", "NOT accepted", "critical", "reasons that are unknown"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_is_the_worst(made: DatasetInfo, name: str) -> None:
    assignment, where, severity, says = FAULTS[name]
    if "KEYS" in where:
        import pandas as pd

        rows = pd.read_parquet(made.folder / "manifest.parquet").set_index("key")
        train = rows.index[rows["split"] == "train"][2]
        test = rows.index[rows["split"] == "test"][2]
        where = f"key IN ('{train}', '{test}')"
    verdict = judge(change(made, assignment, f"({where}) AND key <> '000000001.jpg'"))
    assert verdict.passed == (severity != "critical")
    assert says in verdict.worst_first()[0].sentence()
    assert verdict.worst_first()[0].severity == severity


def test_null_switches_a_check_off_and_severity_raises_it(made: DatasetInfo) -> None:
    info = change(made, "blank = true", "key > '000000500'")
    assert not judge(info, severity=SeverityParams(max_blank="critical")).passed
    assert judge(info, severity=SeverityParams(max_blank="info")).failures("info")
    off = judge(info, max_blank=None)
    assert "blank_share" not in [finding.column for finding in off.findings]
    assert not off.worst_first()


def test_everything_can_be_switched_off(made: DatasetInfo) -> None:
    limits = {
        name: None
        for name in ValidateParams.model_fields
        if name not in ("drift", "severity", "max_outside")
    }
    verdict = judge(made, **limits)
    assert verdict.passed
    assert len(verdict.findings) < len(judge(made).findings)


def test_drift_is_told_and_stops_where_it_is_critical(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    first = check_datasets([make_dataset(folder, Made(rows=2000))], PARAMS, tmp_path)
    write_json(tmp_path / "images.json", first.profiles["images"])
    moved = make_dataset(folder, Made(rows=2000, brighter=0.1, labels=9))
    verdict = judge(moved, references=tmp_path)
    assert verdict.passed
    said = [finding.sentence() for finding in verdict.failures("warning")]
    assert "images: the drift of mean from the accepted data (population stability" in said[0]
    assert any("only the accepted data had (class00009) is 1 (at most 0)" in one for one in said)
    critical = PARAMS.drift.model_copy(update={"severity": "critical"})
    assert not judge(moved, references=tmp_path, drift=critical).passed
    patient = PARAMS.drift.model_copy(update={"limit": 99.0})
    left = judge(moved, references=tmp_path, drift=patient).failures("warning")
    assert [finding.column for finding in left] == ["vanished"]
    ks = PARAMS.drift.model_copy(update={"measure": "ks", "limit": 0.2})
    columns = {one.column for one in judge(moved, references=tmp_path, drift=ks).worst_first()}
    assert columns == {"mean", "vanished"}


def test_accepting_data_that_have_not_moved_leaves_the_verdict_as_it_is(
    made: DatasetInfo, tmp_path: Path
) -> None:
    first = check_datasets([made], PARAMS, tmp_path)
    assert first.drifts == {}
    write_json(tmp_path / "images.json", first.profiles["images"])
    second = check_datasets([made], PARAMS, tmp_path)
    assert second.verdict == first.verdict
    assert max(second.drifts["images"].measures.values()) == 0


def test_too_many_quarantined_stop(tmp_path: Path) -> None:
    info = make_dataset(tmp_path, Made(rows=1000, quarantined=0.2))
    with pytest.raises(DataError, match=r"share of images quarantined is 0\.\d+ \(at most 0\.1\)"):
        judge(info).demand_passed()
    judge(info, max_quarantined=0.3).demand_passed()


def test_unlabelled_images_need_no_classes(tmp_path: Path) -> None:
    verdict = judge(make_dataset(tmp_path, Made(rows=500, labels=0)))
    verdict.demand_passed()
    assert "classes" not in " ".join(finding.subject for finding in verdict.findings)


def test_scenes_are_judged_by_what_is_marked(tmp_path: Path) -> None:
    info = make_dataset(tmp_path, Made(rows=500, labels=0), "scenes")
    info = replace(info, categories=("cell", "dog"), instances={"train": {"cell": 3}})
    change(info, "annotations = 2, annotations_dropped = 1", "accepted AND key > '000000450'")
    said = [finding.sentence() for finding in judge(info).failures("warning")]
    assert ["scenes on which nothing is marked is 0.9" in one for one in said] == [1, 0, 0]
    assert "share of annotations dropped is 0.333333 (at most 0.0)" in said[1]
    assert "smallest category is 0 (at least 1)" in said[2]


def test_skipped_scenes_are_not_judged_but_profiled(
    small_shards: Path, tmp_path: Path, make_params: MakeParams
) -> None:
    images = read_dataset_info(small_shards)
    scenes = shard_dataset("scenes", make_params(scenes={"source": "none"}), 0, tmp_path / "scenes")
    found = check_datasets([images, scenes], PARAMS, NOWHERE)
    assert found.verdict.passed
    assert set(found.verdict.fingerprints) == {"images"}
    assert found.profiles["scenes"]["skipped"] == "data.scenes.source is none: there are no " + (
        "scenes to work on"
    )
    assert found.profiles["images"]["skipped"] is None


def test_the_embedded_scenes_pass(tmp_path: Path, make_params: MakeParams) -> None:
    params = make_params(scenes={"source": "digits"})
    verdict = judge(shard_dataset("scenes", params, 0, tmp_path / "scenes"))
    assert verdict.worst_first() == []


def test_leaks_between_given_splits_stop(tmp_path: Path, make_params: MakeParams) -> None:
    for split, count in (("train", 120), ("val", 20), ("test", 20)):
        zoo.write_images(tmp_path / "source" / split, count)
    leaked = (tmp_path / "source" / "train" / "0000.png").read_bytes()
    (tmp_path / "source" / "test" / "0003.png").write_bytes(leaked)
    keep = {"exact": "keep", "near": "keep", "near_bits": 4}
    params = make_params(images=tmp_path / "source", duplicates=keep)
    info = shard_dataset("images", params, 0, tmp_path / "shards" / "images")
    with pytest.raises(DataError, match=r"bytes of a train image is 0\.025 \(at most 0\.0\)"):
        judge(info).demand_passed()
    judge(info, max_leaked=0.03).demand_passed()


@pytest.mark.slow
def test_real_nuclei_are_fit_for_training(
    tmp_path: Path, make_params: MakeParams, real_data: Path
) -> None:
    params = make_params(scenes=real_data / "nuclei", channels=3)
    judge(shard_dataset("scenes", params, 0, tmp_path / "scenes")).demand_passed()


def test_a_verdict_is_read_back_and_binds_to_its_data(made: DatasetInfo, tmp_path: Path) -> None:
    verdict = judge(made)
    path = tmp_path / "verdict.json"
    write_json(path, verdict.to_dict())
    assert Verdict.read(path) == verdict
    verdict.demand_valid(made)
    with pytest.raises(DataError, match="changed since they were validated"):
        verdict.demand_valid(replace(made, fingerprint="other"))
    with pytest.raises(DataError, match="run `dvc repro validate` first"):
        Verdict.read(tmp_path / "absent.json")
    for damaged in ("{", "{}", '{"passed": true, "fingerprints": {}, "expectations": [{}]}'):
        path.write_text(damaged)
        with pytest.raises(DataError, match="is damaged"):
            Verdict.read(path)
