"""DuckDB's counts are those of pandas, and depend on nothing but the rows."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae.data.dataset import DatasetInfo
from mae.data.manifest import MANIFEST
from mae.data.validation.bins import QUANTILES, SCALES, ColumnProfile, Linear, Logarithmic
from mae.data.validation.profile import Profile, open_manifest
from mae.errors import DataError
from mae.params import ValidateParams, read_params
from tests.data.made_manifest import Made, change, make_dataset

PARAMS = read_params(Path(__file__).parents[2] / "params.yaml").validate_
BOUNDS = PARAMS.model_copy(update={"height": (300.0, 500.0), "brightness": (0.3, 0.6)})
MADE = Made(
    rows=100_000,
    labels=50,
    quarantined=0.03,
    duplicates=0.05,
    near_duplicates=0.1,
    blank=0.02,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return make_dataset(tmp_path_factory.mktemp("made"), MADE)


@pytest.fixture(scope="module")
def rows(made: DatasetInfo) -> pd.DataFrame:
    return pd.read_parquet(made.folder / "manifest.parquet")


@pytest.fixture(scope="module")
def profile(made: DatasetInfo) -> Profile:
    return Profile.of(made, BOUNDS)


def test_a_made_manifest_has_the_columns_that_are_read(rows: pd.DataFrame) -> None:
    of_the_sharder = {"proof", "categories", "sum_pixels", "sum_total", "sum_squares"}
    assert set(MANIFEST.names) - of_the_sharder <= set(rows.columns) <= set(MANIFEST.names)


def test_totals_equal_those_of_pandas(profile: Profile, rows: pd.DataFrame) -> None:
    good = rows[rows["accepted"]]
    train, held_out = good[good["split"] == "train"], good[good["split"] != "train"]
    look = good["near_duplicate_of"].fillna(good["key"])
    expected = {
        "seen": 100_000,
        "accepted": len(good),
        "held_out": len(held_out),
        "quarantined": 100_000 - len(good),
        "set_aside": 0,
        "duplicates": int(good["sha256"].duplicated().sum()),
        "leaked": int(held_out["sha256"].isin(set(train["sha256"])).sum()),
        "near_duplicates": int(good["near_duplicate_of"].notna().sum()),
        "near_leaked": int(look[held_out.index].isin(set(look[train.index])).sum()),
        "blank": int(good["blank"].astype(bool).sum()),
        "unlabelled": 0,
        "same_key": 0,
        "same_place": 0,
        "too_small": 0,
        "no_sha256": 0,
    }
    assert {name: profile.totals[name] for name in expected} == expected
    assert min(expected[n] for n in ("duplicates", "leaked", "near_leaked", "blank")) > 100
    assert profile.outside == {
        "height": int((~good["height"].between(300, 500)).sum()),
        "aspect": int((~(good["width"] / good["height"]).between(0.2, 5)).sum()),
        "brightness": int((~good["mean"].between(0.3, 0.6)).sum()),
        "entropy": int((~good["entropy"].between(0.2, 8)).sum()),
    }


def test_counts_equal_those_of_pandas(profile: Profile, rows: pd.DataFrame) -> None:
    good = rows[rows["accepted"]]
    assert profile.splits == good["split"].value_counts().to_dict()
    assert profile.reasons == {"truncated": int((~rows["accepted"]).sum())}
    counts = good.groupby(["label", "split"]).size()
    assert {
        (label, split): count
        for label, splits in profile.labels.items()
        for split, count in splits.items()
    } == counts.to_dict()
    assert profile.names["channels"] == {"3": len(good)}
    assert len(profile.sample) == len(good)


@pytest.mark.parametrize("name", SCALES)
def test_columns_equal_those_of_pandas(profile: Profile, rows: pd.DataFrame, name: str) -> None:
    values = rows.loc[rows["accepted"], name].to_numpy(dtype=float)
    column = profile.columns[name]
    assert (column.count, column.low, column.high) == (len(values), values.min(), values.max())
    assert column.mean == pytest.approx(values.mean(), abs=1e-6)
    scale = SCALES[name]
    numbers = [number_of(scale, value) for value in values]
    found, counts = np.unique(numbers, return_counts=True)
    assert column.bins == dict(zip(found.tolist(), counts.tolist(), strict=True))
    for q in QUANTILES:
        exact = float(np.quantile(values, q, method="inverted_cdf"))
        assert number_of(scale, column.quantiles[q]) == number_of(scale, exact)


def number_of(scale: Linear | Logarithmic, value: float) -> int:
    if isinstance(scale, Linear):
        return max(0, min(scale.count - 1, math.floor(value * (scale.count / scale.top))))
    return math.floor(math.log2(max(1, value)) * scale.count)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_quantiles_of_few_values_are_values(values: list[int]) -> None:
    found = {value: values.count(value) for value in sorted(set(values))}
    rows = [(v, n, float(v), float(v), n * v * 1_000_000) for v, n in found.items()]
    column = ColumnProfile.of(rows)
    assert column.mean == pytest.approx(sum(values) / len(values))
    for q in QUANTILES:
        assert column.quantiles[q] == np.quantile(values, q, method="inverted_cdf")


def test_a_column_without_values_is_none() -> None:
    column = ColumnProfile.of([])
    assert (column.count, column.low, column.mean, column.bins) == (0, None, None, {})


def test_the_order_of_the_rows_plays_no_part(tmp_path: Path) -> None:
    info = make_dataset(tmp_path, Made(rows=5000, duplicates=0.1))
    first = Profile.of(info, PARAMS)
    path = tmp_path / "manifest.parquet"
    table = pq.read_table(path)
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    pq.write_table(shuffled, path, row_group_size=700)
    again = Profile.of(info, PARAMS)
    assert first.to_dict() == again.to_dict()
    assert first.sample.equals(again.sample)


def test_a_sample_is_of_the_keys_alone(made: DatasetInfo) -> None:
    from mae.data.validation.profile import _sample

    with open_manifest(made.folder) as connection:
        small, large = _sample(connection, 1000), _sample(connection, 5000)
    assert 850 < len(small) < 1150
    assert 4700 < len(large) < 5300
    assert set(small["key"]) < set(large["key"])
    assert list(small["key"]) == sorted(small["key"])


def test_what_has_gone_and_what_was_set_aside_are_no_faults(tmp_path: Path) -> None:
    info = make_dataset(tmp_path, Made(rows=1000, quarantined=0.1))
    faults = Profile.of(info).totals["quarantined"]
    change(info, "accepted = false, reason = 'gone'", "accepted AND key < '000000100'")
    change(info, "accepted = false, reason = 'duplicate'", "accepted AND key > '000000900'")
    totals = Profile.of(info).totals
    assert totals["quarantined"] == faults > 50
    assert totals["gone"] + 80 < totals["set_aside"]
    assert totals["accepted"] + totals["set_aside"] + totals["quarantined"] == totals["seen"]


def test_numbers_that_are_not_finite_count_as_missing(tmp_path: Path) -> None:
    info = make_dataset(tmp_path, Made(rows=200, quarantined=0))
    change(info, "mean = 'NaN'", "key < '000000003'")
    change(info, "mean = NULL", "key = '000000003.jpg'")
    profile = Profile.of(info)
    assert profile.totals["no_mean"] == 4
    assert profile.columns["mean"].count == 196
    assert math.isfinite(profile.to_dict()["columns"]["mean"]["mean"])


@pytest.mark.parametrize("fault", ["missing", "words", "cut", "old"])
def test_a_manifest_that_cannot_be_used_is_an_error(tmp_path: Path, fault: str) -> None:
    info = make_dataset(tmp_path, Made(rows=100))
    path = tmp_path / "manifest.parquet"
    if fault == "missing":
        path.unlink()
    elif fault == "words":
        path.write_text("no table")
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        table = pq.read_table(path).drop_columns(["entropy"])
        pq.write_table(table, path)
    with pytest.raises(DataError, match=r"manifest\.parquet cannot be used .*shard the data again"):
        Profile.of(info)


def test_memory_is_bounded_and_nothing_is_fetched(made: DatasetInfo) -> None:
    with open_manifest(made.folder) as connection:
        (limit, fetched) = connection.execute(
            "SELECT current_setting('memory_limit'), "
            "current_setting('autoinstall_known_extensions')"
        ).fetchall()[0]
    assert limit == "953.6 MiB"
    assert fetched is False


def test_ranges_that_are_null_are_not_counted(made: DatasetInfo) -> None:
    none = dict.fromkeys(("height", "width", "aspect", "brightness", "entropy"))
    params: ValidateParams = PARAMS.model_copy(update=none)
    assert Profile.of(made, params).outside == {}


def test_duckdb_reads_what_the_sharder_writes(tmp_path: Path) -> None:
    """The manifest's schema, empty: every query must bind to its columns and types."""
    info = make_dataset(tmp_path, Made(rows=10))
    pq.write_table(MANIFEST.empty_table(), tmp_path / "manifest.parquet")
    profile = Profile.of(info, BOUNDS)
    assert profile.totals["seen"] == 0
    assert profile.columns["height"].count == 0
