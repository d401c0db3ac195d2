"""Drift: the measures against scipy and by hand, and what is reported of two versions."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from mae.data.validation.drift import (
    accept,
    compare,
    kolmogorov_smirnov,
    psi,
    read_reference,
    total_variation,
)
from mae.data.validation.profile import Profile, skipped_profile
from mae.errors import DataError
from mae.files import write_json
from mae.params.validation import DriftParams
from tests.data.made_manifest import Made, make_dataset

COLUMNS = ("height", "width", "bytes", "mean", "std", "entropy", "label")
PSI = DriftParams(measure="psi", limit=0.25, severity="warning", columns=COLUMNS)
KS = PSI.model_copy(update={"measure": "ks"})


def profile_of(folder: Path, **made: Any) -> dict[str, Any]:
    return Profile.of(make_dataset(folder, Made(**made))).to_dict()


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return profile_of(tmp_path_factory.mktemp("accepted"), rows=4000)


def test_psi_by_hand() -> None:
    expected, observed = np.array([50.0, 30, 20]), np.array([20.0, 30, 50])
    by_hand = (0.2 - 0.5) * math.log(0.2 / 0.5) + (0.5 - 0.2) * math.log(0.5 / 0.2)
    assert psi(expected, observed) == pytest.approx(by_hand)
    assert psi(expected, 7 * expected) == pytest.approx(0, abs=1e-12)
    nothing = (1 - 1e-4) * math.log(1e4) * 2
    assert psi(np.array([1.0, 0]), np.array([0.0, 1])) == pytest.approx(nothing)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
)
def test_ks_is_that_of_scipy(first: list[int], second: list[int]) -> None:
    counts = [np.bincount(values, minlength=10).astype(float) for values in (first, second)]
    expected = ks_2samp(first, second, method="asymp").statistic
    assert kolmogorov_smirnov(*counts) == pytest.approx(expected, abs=1e-12)


def test_total_variation_by_hand() -> None:
    assert total_variation(np.array([2.0, 1, 1]), np.array([1.0, 1, 2])) == pytest.approx(0.25)
    assert total_variation(np.array([1.0, 0]), np.array([0.0, 1])) == 1


@pytest.mark.parametrize("params", [PSI, KS])
def test_the_same_data_have_not_moved(accepted: dict[str, Any], params: DriftParams) -> None:
    drift = compare(accepted, copy.deepcopy(accepted), params)
    assert set(drift.measures) == set(COLUMNS)
    assert max(drift.measures.values()) < 1e-9
    assert (drift.new, drift.vanished) == ((), ())


@pytest.mark.parametrize("rows", [120, 500, 4000])
def test_another_draw_of_the_same_data_stays_within_the_limit(
    accepted: dict[str, Any], tmp_path: Path, rows: int
) -> None:
    for seed in (1, 2, 3):
        drift = compare(accepted, profile_of(tmp_path, rows=rows, seed=seed), PSI)
        assert max(drift.measures.values()) < PSI.limit, (seed, drift.measures)


@pytest.mark.parametrize(("params", "limit"), [(PSI, 0.25), (KS, 0.2)])
def test_brighter_and_larger_images_are_seen(
    accepted: dict[str, Any], tmp_path: Path, params: DriftParams, limit: float
) -> None:
    drift = compare(accepted, profile_of(tmp_path, rows=4000, brighter=0.1, height=324), params)
    assert {name for name, value in drift.measures.items() if value > limit} == {
        "mean",
        "height",
        "width",
    }


def test_values_never_seen_count_although_all_were_one(accepted: dict[str, Any]) -> None:
    before, after = copy.deepcopy(accepted), copy.deepcopy(accepted)
    before["columns"]["height"]["bins"] = [[80, 4000]]
    after["columns"]["height"]["bins"] = [[90, 4000]]
    assert compare(before, after, PSI).measures["height"] > 5
    assert compare(before, after, KS).measures["height"] == 1


def test_new_and_vanished_classes_are_named(accepted: dict[str, Any]) -> None:
    now = copy.deepcopy(accepted)
    labels = now["names"]["label"]
    labels["zebra"] = labels.pop("class00003")
    labels["class00004"] = 0
    drift = compare(accepted, now, PSI)
    assert drift.new == ("zebra",)
    assert drift.vanished == ("class00003", "class00004")
    nothing = compare(accepted, now, PSI.model_copy(update={"columns": ()}))
    assert (nothing.measures, nothing.new, nothing.vanished) == ({}, (), ())


def test_ten_thousand_classes_do_not_drift_by_chance(tmp_path: Path) -> None:
    first = profile_of(tmp_path, rows=40_000, labels=10_000)
    second = profile_of(tmp_path, rows=40_000, labels=10_000, seed=1, quarantined=0.05)
    assert compare(first, second, PSI).measures["label"] < 0.02


def test_columns_that_one_version_lacks_are_left_out(
    accepted: dict[str, Any], tmp_path: Path
) -> None:
    drift = compare(accepted, profile_of(tmp_path, rows=500, labels=0), PSI)
    assert "label" not in drift.measures
    assert len(drift.vanished) == 10


def test_accept_then_read(accepted: dict[str, Any], tmp_path: Path) -> None:
    validation, references = tmp_path / "validation", tmp_path / "reference"
    with pytest.raises(DataError, match="holds no profile: run `dvc repro validate` first"):
        accept(validation, references)
    assert read_reference(references, "images") is None
    write_json(validation / "profile-images.json", accepted)
    info = make_dataset(tmp_path / "scenes", Made(rows=10), "scenes")
    skipped = skipped_profile(replace(info, skipped="there are none"))
    write_json(validation / "profile-scenes.json", skipped)
    assert accept(validation, references) == [references / "images.json"]
    assert read_reference(references, "images") == accepted
    written = (references / "images.json").read_bytes()
    assert written == (validation / "profile-images.json").read_bytes()
    assert read_reference(references, "scenes") is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is damaged"),
        ('{"format": 99}', "no profile of format 1"),
        ("[]", "no profile of format 1"),
        ('{"format": 1, "dataset": "scenes", "skipped": null}', "is a profile of scenes"),
    ],
)
def test_a_reference_that_is_none_is_an_error(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "images.json").write_text(content)
    with pytest.raises(DataError, match=says):
        read_reference(tmp_path, "images")
