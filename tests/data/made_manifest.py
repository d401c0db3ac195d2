"""Manifests of any length, made by DuckDB: every column a function of the row and a seed."""

from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from mae.data.dataset import DatasetInfo, write_dataset_info
from mae.data.sharding.splits import SPLITS
from mae.files import fingerprint
from mae.pixels import PixelStatistics


@dataclass(frozen=True)
class Made:
    """What the manifest is to hold: shares of rows, and `brighter`, added to every mean."""

    rows: int = 2000
    seed: int = 0
    labels: int = 10
    quarantined: float = 0.01
    duplicates: float = 0.0
    near_duplicates: float = 0.0
    blank: float = 0.0
    brighter: float = 0.0
    height: int = 224


def make_dataset(folder: Path, made: Made, dataset: str = "images") -> DatasetInfo:
    """Write manifest.parquet and dataset.json: 80 % train, 10 % val, 10 % test.

    A duplicate has the bytes of row 0, 1, 2 or ..., a near-duplicate its look.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false; SET memory_limit = '3GB'")
        connection.execute(
            f"COPY ({_query(made)}) TO '{folder / 'manifest.parquet'}' (COMPRESSION zstd)"
        )
    return write_info(folder, made, dataset)


def write_info(folder: Path, made: Made, dataset: str = "images") -> DatasetInfo:
    """Write the dataset.json that goes with a manifest, and return it."""
    with duckdb.connect() as connection:
        rows = connection.read_parquet(str(folder / "manifest.parquet"))
        found = rows.filter("accepted").aggregate("split, count(*)").fetchall()
        (seen,) = rows.aggregate("count(*)").fetchall()[0]
    splits = {split: dict(found).get(split, 0) for split in SPLITS}
    info = DatasetInfo(
        folder=folder,
        dataset=dataset,
        layout="made",
        classes=tuple(f"class{number:05d}" for number in range(made.labels)),
        categories=(),
        statistics=PixelStatistics((0.5,) * 3, (0.25,) * 3),
        fingerprint=fingerprint(repr(made)),
        recipe="made",
        code="made",
        splits=splits,
        instances={},
        seen=seen,
        accepted=sum(splits.values()),
        quarantined=seen - sum(splits.values()),
        set_aside=0,
        limits={"min_side": 8, "max_pixels": 100_000_000},
    )
    write_dataset_info(info, folder)
    return info


def change(info: DatasetInfo, assignments: str, where: str) -> DatasetInfo:
    """Set columns of the manifest rows for which `where` holds, as in SQL's UPDATE."""
    path = info.folder / "manifest.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE manifest AS FROM '{path}'")
        connection.execute(f"UPDATE manifest SET {assignments} WHERE {where}")
        connection.execute(f"COPY (FROM manifest ORDER BY key) TO '{path}'")
    return replace(info, fingerprint=fingerprint([info.fingerprint, assignments, where]))


def _query(made: Made) -> str:
    def draw(purpose: str) -> str:
        return f"(hash(i, '{purpose}', {made.seed}) % 1000003) / 1000003.0"

    label = f"format('class{{:05d}}', (hash(i, 'label', {made.seed}) % {made.labels})::INTEGER)"
    if not made.labels:
        label = "NULL"
    return f"""
    WITH drawn AS (
        SELECT i, format('{{:09d}}.jpg', i) AS key, {draw("fault")} >= {made.quarantined} AS good,
            i >= 100 AND {draw("copy")} < {made.duplicates} AS copied,
            i >= 100 AND {draw("near")} < {made.near_duplicates} AS alike,
            {draw("blank")} < {made.blank} AS flat, {draw("split")} AS part
        FROM range({made.rows}) AS rows(i)
    )
    SELECT key, good AS accepted,
        CASE WHEN NOT good THEN 'truncated' END AS reason,
        CASE WHEN NOT good THEN 'ends too early' END AS detail,
        CASE WHEN good THEN CASE WHEN part < 0.8 THEN 'train' WHEN part < 0.9 THEN 'val'
            ELSE 'test' END END AS split,
        CASE WHEN good THEN {label} END AS label,
        CAST(NULL AS VARCHAR) AS "group",
        CASE WHEN good THEN {made.height} + (hash(i, 'h', {made.seed}) % 400)::BIGINT END AS height,
        CASE WHEN good THEN {made.height} + (hash(i, 'w', {made.seed}) % 500)::BIGINT END AS width,
        CASE WHEN good THEN CAST(3 AS BIGINT) END AS channels,
        CASE WHEN good THEN CAST(8 AS BIGINT) END AS bit_depth,
        CASE WHEN good THEN 'RGB' END AS mode,
        CASE WHEN good THEN 'JPEG' END AS format,
        CASE WHEN good THEN CAST(1 AS BIGINT) END AS orientation,
        CASE WHEN good THEN 5000 + (hash(i, 'bytes', {made.seed}) % 90000)::BIGINT END AS bytes,
        CASE WHEN good THEN sha256(CASE WHEN copied THEN 'copy' || i % 100
            ELSE key || {made.seed} END) END AS sha256,
        CASE WHEN good AND NOT flat THEN hash(i, 'look', {made.seed}) END AS phash,
        CASE WHEN good THEN least(1, {made.brighter} + 0.2 + 0.3 * ({draw("a")} + {draw("b")}))
            END AS mean,
        CASE WHEN NOT good THEN NULL WHEN flat THEN 0 ELSE 0.1 + 0.2 * {draw("std")} END AS std,
        CASE WHEN NOT good THEN NULL WHEN flat THEN 0 ELSE 5 + 2.5 * {draw("bits")} END AS entropy,
        CASE WHEN good THEN flat END AS blank,
        CAST(NULL AS BIGINT) AS annotations,
        CAST(NULL AS BIGINT) AS annotations_dropped,
        CASE WHEN good AND copied AND i <> i % 100 THEN format('{{:09d}}.jpg', i % 100)
            END AS duplicate_of,
        CASE WHEN good AND alike THEN format('{{:09d}}.jpg', i % 100) END AS near_duplicate_of,
        CAST(NULL AS VARCHAR) AS columns,
        CASE WHEN good THEN i // 10000 END AS shard,
        CASE WHEN good THEN i % 10000 END AS slot,
        CASE WHEN good THEN CAST(20000 AS BIGINT) END AS stored_bytes,
        CASE WHEN good THEN CAST(224 AS BIGINT) END AS stored_height,
        CASE WHEN good THEN CAST(224 AS BIGINT) END AS stored_width,
        CASE WHEN good THEN CAST(7 AS BIGINT) END AS checksum,
        CASE WHEN good THEN CAST(7 AS BIGINT) END AS about_checksum
    FROM drawn ORDER BY i"""
