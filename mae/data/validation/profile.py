"""A manifest in numbers, counted by DuckDB: as exact for ten million rows as for ten.

The manifest is never read as a whole: it is aggregated in bounded memory, with what does not fit
on disk. Sums are of integers, so that no number depends on the order in which threads add.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae.data import reasons
from mae.data.dataset import DatasetInfo
from mae.data.validation.bins import SCALES, ColumnProfile
from mae.errors import DataError
from mae.params import ValidateParams

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

FORMAT = 1
SAMPLE_ROWS = 100_000
NAMES = ("split", "channels", "bit_depth", "format")
# The ranges of `validate`, by their name, in terms of the manifest's columns.
RANGES = {
    "height": "height",
    "width": "width",
    "aspect": "width / height",
    "brightness": "mean",
    "entropy": "entropy",
}

_THREADS = 4
_MEMORY = "1GB"
_SAMPLED = (
    *("key", "split", "height", "width", "channels", "bit_depth", "mode", "format", "orientation"),
    *("bytes", "sha256", "mean", "std", "entropy"),
)


@dataclass(frozen=True)
class Profile:
    """totals: exact counts by name. splits: accepted images in each. reasons: inputs left out
    for each. labels: class -> split -> images, of the classes that are known or met. names:
    column -> value -> accepted images. columns: distributions of numbers. outside: accepted
    images outside each range of `validate`. sample: up to about 100,000 accepted rows, chosen by
    a hash of the key.
    """

    info: DatasetInfo
    totals: dict[str, int]
    splits: dict[str, int]
    reasons: dict[str, int]
    labels: dict[str, dict[str, int]]
    names: dict[str, dict[str, int]]
    columns: dict[str, ColumnProfile]
    outside: dict[str, int]
    sample: "pd.DataFrame"

    @classmethod
    def of(cls, info: DatasetInfo, params: ValidateParams | None = None) -> "Profile":
        """Profile the manifest beside dataset.json. Raises DataError where it cannot be used."""
        with open_manifest(info.folder) as connection:
            return cls(
                info=info,
                totals={**_totals(connection, info), **_repeated(connection)},
                splits=_counts(connection, "split", "accepted"),
                reasons=_counts(connection, "reason", "NOT accepted"),
                labels=_labels(connection, info),
                names={name: _counts(connection, name, "accepted") for name in NAMES},
                columns={name: _column(connection, name) for name in SCALES},
                outside=_outside(connection, params) if params else {},
                sample=_sample(connection, SAMPLE_ROWS),
            )

    def share(self, part: str, whole: str = "accepted") -> float:
        """Return one total as a share of another, 0 where there is nothing."""
        return self.totals[part] / max(1, self.totals[whole])

    @cached_property
    def classes(self) -> list[str]:
        """Classes, or for scenes categories, in order."""
        return list(self.info.classes or self.info.categories)

    def images_or_objects(self, split: str) -> dict[str, int]:
        """Return class -> images of a split, or category -> objects."""
        if self.info.classes:
            return {name: self.labels.get(name, {}).get(split, 0) for name in self.info.classes}
        counts = self.info.instances.get(split, {})
        return {name: counts.get(name, 0) for name in self.info.categories}

    def to_dict(self) -> dict[str, Any]:
        """Return what later versions of the data are compared with: no keys, no times."""
        return {
            "format": FORMAT,
            "dataset": self.info.dataset,
            "skipped": None,
            "fingerprint": self.info.fingerprint,
            "totals": self.totals,
            "reasons": self.reasons,
            "columns": {name: column.to_dict() for name, column in self.columns.items()},
            "names": self.names
            | {"label": {name: sum(counts.values()) for name, counts in self.labels.items()}},
        }


def skipped_profile(info: DatasetInfo) -> dict[str, Any]:
    """Return what stands in the place of the profile of a dataset that was skipped."""
    return {"format": FORMAT, "dataset": info.dataset, "skipped": info.skipped}


@contextmanager
def open_manifest(folder: Path) -> Iterator["duckdb.DuckDBPyConnection"]:
    """Yield a connection in which `manifest` is the manifest of `folder`.

    Raises DataError when the file is missing, damaged or of another format.
    """
    import duckdb

    path = folder / "manifest.parquet"
    with tempfile.TemporaryDirectory(prefix="mae-profile-") as spill:
        connection = duckdb.connect(
            config={
                "threads": min(_THREADS, os.cpu_count() or 1),
                "memory_limit": _MEMORY,
                "temp_directory": spill,
                "preserve_insertion_order": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            }
        )
        try:
            connection.execute("SET enable_progress_bar = false")
            connection.read_parquet(str(path)).create_view("manifest")
            yield connection
        except (duckdb.IOException, duckdb.InvalidInputException, duckdb.BinderException) as error:
            raise DataError(
                f"{path} cannot be used ({str(error).splitlines()[0]}): shard the data again"
            ) from None
        finally:
            connection.close()


def _row(connection: "duckdb.DuckDBPyConnection", query: str) -> dict[str, int]:
    """Return the one row of a query of counts by column; a count of nothing is 0."""
    result = connection.execute(query)
    names = [column[0] for column in result.description]
    (row,) = result.fetchall()
    return {name: int(value or 0) for name, value in zip(names, row, strict=True)}


def _totals(connection: "duckdb.DuckDBPyConnection", info: DatasetInfo) -> dict[str, int]:
    aside = ", ".join(f"'{reason}'" for reason in sorted(reasons.SET_ASIDE))
    missing = [f"{name} IS NULL" for name in ("split", "sha256", "height", "width")]
    missing += [f"{name} IS NULL OR NOT isfinite({name})" for name in ("mean", "std", "entropy")]
    absent = [f"count_if(accepted AND ({what})) AS no_{what.split()[0]}" for what in missing]
    return _row(
        connection,
        f"""
        SELECT count(*) AS seen, count_if(accepted) AS accepted,
            count_if(accepted AND split <> 'train') AS held_out,
            count_if(NOT accepted AND coalesce(reason, '') NOT IN ({aside})) AS quarantined,
            count_if(NOT accepted AND reason IN ({aside})) AS set_aside,
            count_if(NOT accepted AND reason = '{reasons.GONE}') AS gone,
            count_if(key IS NULL OR key = '') AS no_key, {", ".join(absent)},
            count_if(accepted AND NOT regexp_full_match(sha256, '[0-9a-f]{{64}}')) AS odd_sha256,
            count_if(accepted AND least(height, width) < {info.limits["min_side"]}) AS too_small,
            count_if(accepted AND height * width > {info.limits["max_pixels"]}) AS too_large,
            count_if(accepted AND label IS NULL) AS unlabelled,
            count_if(accepted AND near_duplicate_of IS NOT NULL) AS near_duplicates,
            count_if(accepted AND blank) AS blank,
            count_if(accepted AND coalesce(annotations, 0) = 0) AS unmarked,
            sum(annotations) FILTER (accepted) AS marks,
            sum(annotations_dropped) FILTER (accepted) AS marks_dropped
        FROM manifest""",
    )


def _repeated(connection: "duckdb.DuckDBPyConnection") -> dict[str, int]:
    """Count keys, places and bytes that occur more than once, and what train and the rest share.

    128-bit hashes stand for the texts: a tenth of the memory, and no collisions in practice.
    """
    same_bytes = _shared(connection, "md5_number(sha256)")
    same_look = _shared(connection, "md5_number(coalesce(near_duplicate_of, key))")
    again = """SELECT coalesce(sum(n - 1), 0) AS {name} FROM (
        SELECT count(*) AS n FROM manifest WHERE accepted GROUP BY {by} HAVING n > 1)"""
    return {
        "duplicates": same_bytes["repeated"],
        "leaked": same_bytes["leaked"],
        "near_leaked": same_look["leaked"],
        **_row(connection, again.format(name="same_key", by="md5_number(key)")),
        **_row(connection, again.format(name="same_place", by="split, shard, slot")),
    }


def _shared(connection: "duckdb.DuckDBPyConnection", by: str) -> dict[str, int]:
    """Count accepted rows whose `by` came before, and held-out ones whose `by` train has too."""
    return _row(
        connection,
        f"""
        SELECT sum(n - 1) AS repeated, sum(n - learned) FILTER (learned > 0) AS leaked FROM (
            SELECT count(*) AS n, count_if(split = 'train') AS learned
            FROM manifest WHERE accepted AND {by} IS NOT NULL GROUP BY {by} HAVING n > 1)""",
    )


def _outside(connection: "duckdb.DuckDBPyConnection", params: ValidateParams) -> dict[str, int]:
    """Count accepted images outside each range that is set."""
    bounds = {name: getattr(params, name) for name in RANGES}
    counts = [
        f"count_if({RANGES[name]} NOT BETWEEN {low!r} AND {high!r}) AS {name}"
        for name, (low, high) in ((name, found) for name, found in bounds.items() if found)
    ]
    if not counts:
        return {}
    return _row(connection, f"SELECT {', '.join(counts)} FROM manifest WHERE accepted")


def _counts(connection: "duckdb.DuckDBPyConnection", column: str, condition: str) -> dict[str, int]:
    rows = connection.execute(
        f"SELECT CAST({column} AS VARCHAR) AS value, count(*) FROM manifest "
        f"WHERE {condition} AND {column} IS NOT NULL GROUP BY value ORDER BY value"
    )
    return dict(rows.fetchall())


def _labels(
    connection: "duckdb.DuckDBPyConnection", info: DatasetInfo
) -> dict[str, dict[str, int]]:
    rows = connection.execute(
        "SELECT label, split, count(*) FROM manifest WHERE accepted AND label IS NOT NULL "
        "AND split IS NOT NULL GROUP BY label, split ORDER BY label, split"
    ).fetchall()
    found: dict[str, dict[str, int]] = {name: {} for name in info.classes}
    for label, split, count in rows:
        found.setdefault(label, {})[split] = count
    return found


def _column(connection: "duckdb.DuckDBPyConnection", name: str) -> ColumnProfile:
    rows = connection.execute(
        f"""
        SELECT {SCALES[name].sql(name)} AS bin, count(*), min({name}), max({name}),
            sum(CAST(round({name} * 1e6) AS HUGEINT))
        FROM manifest WHERE accepted AND {name} IS NOT NULL AND isfinite(CAST({name} AS DOUBLE))
        GROUP BY bin ORDER BY bin"""
    ).fetchall()
    return ColumnProfile.of(rows)


def _sample(connection: "duckdb.DuckDBPyConnection", rows: int) -> "pd.DataFrame":
    """Return all accepted rows, or where they are more than `rows` about so many of them."""
    accepted = _row(connection, "SELECT count_if(accepted) AS rows FROM manifest")["rows"]
    cut = (1 << 64) * rows // max(rows, accepted)
    chosen = "" if accepted <= rows else f"AND md5_number_lower(key) < {cut}"
    return connection.execute(
        f"SELECT {', '.join(_SAMPLED)} FROM manifest WHERE accepted {chosen} ORDER BY key"
    ).df()
