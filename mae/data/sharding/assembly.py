"""Where a dataset is put together: a locked workspace, the dataset before, and the exchange.

A dataset is exchanged for the next by renaming folders; a kill at any moment leaves either of
them whole, or the one before in the workspace, from where it is put back.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import lmdb
import pyarrow as pa
import pyarrow.compute as pc

from mae.data.dataset import FORMAT, DatasetInfo, read_dataset_info, write_dataset_info
from mae.data.manifest import MANIFEST, index_of, read_manifest, write_table
from mae.data.sharding.layout import Layout, Shard
from mae.data.sharding.storing import PLACES, ShardTask
from mae.errors import DataError
from mae.files import fingerprint, flush_to_disk, sha256_of_file, write_json
from mae.params import DataParams

log = logging.getLogger(__name__)

_BEFORE = "before"
_NEXT = "next"


@contextmanager
def workspace_of(folder: Path) -> Iterator[Path]:
    """Yield `.<name>.partial` beside `folder`, locked against other processes.

    It is removed when the block succeeds and kept when it fails. Raises DataError when another
    process works in it.
    """
    workspace = folder.parent / f".{folder.name}.partial"
    workspace.mkdir(parents=True, exist_ok=True)
    with (workspace / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"another process is sharding {folder}: wait for it to end, then run again"
            ) from None
        _put_back(folder, workspace)
        for half in (*workspace.glob("*.tmp"), *workspace.glob("*.raw")):
            half.unlink(missing_ok=True)
        yield workspace
        shutil.rmtree(workspace)


def _put_back(folder: Path, workspace: Path) -> None:
    before = workspace / _BEFORE
    if before.exists() and not folder.exists():
        before.rename(folder)
    shutil.rmtree(before, ignore_errors=True)
    shutil.rmtree(workspace / _NEXT, ignore_errors=True)


def recipe_of(data: DataParams, seed: int | None) -> str:
    """Return a hash of every parameter that shapes a dataset, but not of what its source is: one
    that moves, or comes as an archive, may go on. seed: of a source that is drawn."""
    content = data.model_dump(mode="json", exclude={"images", "scenes"})
    return fingerprint([FORMAT, lmdb.version()[:2], seed, content])


def code_of() -> str:
    """Return a hash of the code that examines images: other code may find out other facts."""
    sharding = Path(__file__).parent
    files = [*sharding.glob("*.py"), *(sharding.parent / "decoding").glob("*.py")]
    return fingerprint([sha256_of_file(path) for path in sorted(files)])


@dataclass(frozen=True)
class Previous:
    """The dataset that the next one builds on: made with the same recipe, or none at all."""

    folder: Path
    manifest: pa.Table = field(default_factory=MANIFEST.empty_table)
    shards: tuple[Shard, ...] = ()
    examined_alike: bool = False

    @classmethod
    def read(cls, folder: Path, recipe: str, code: str) -> "Previous":
        if not (folder / "dataset.json").exists():
            return cls(folder)
        try:
            info = read_dataset_info(folder)
        except DataError as error:
            log.info("%s is made anew: %s", folder, error)
            return cls(folder)
        if info.recipe != recipe:
            log.info("%s is made anew: it was made with other parameters", folder)
            return cls(folder)
        manifest = read_manifest(folder)
        shards = _shards_of(manifest.filter(manifest["accepted"]))
        missing = [shard.name for shard in shards if not (folder / shard.name).exists()]
        if missing:
            log.warning("%s is made anew: %s is missing", folder, missing[0])
            return cls(folder)
        return cls(folder, manifest, shards, info.code == code)

    @property
    def facts(self) -> Path | None:
        """Return the manifest whose facts still hold, if this code found them out."""
        return self.folder / "manifest.parquet" if self.examined_alike else None

    @property
    def accepted(self) -> pa.Table:
        return self.manifest.filter(self.manifest["accepted"])

    @property
    def splits(self) -> dict[str, str]:
        """Return key -> split of the images that are in the shards."""
        rows = self.accepted
        return dict(zip(rows["key"].to_pylist(), rows["split"].to_pylist(), strict=True))

    @property
    def proofs(self) -> dict[str, str]:
        """Return key -> proof of the images that are in the shards."""
        rows = self.accepted
        return dict(zip(rows["key"].to_pylist(), rows["proof"].to_pylist(), strict=True))

    def places(self, kept: tuple[Shard, ...]) -> pa.Table:
        """Return where the images of the shards that are `kept` lie (PLACES)."""
        keys = pa.array([key for shard in kept for key in shard.keys], pa.string())
        rows = self.accepted.select(PLACES.names)
        return rows.filter(pc.is_in(rows["key"], keys)).cast(PLACES)


def _shards_of(accepted: pa.Table) -> tuple[Shard, ...]:
    order = pc.sort_indices(accepted, [(name, "ascending") for name in ("split", "shard", "slot")])
    rows = accepted.select(["split", "shard", "key"]).take(order)
    columns = zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True)
    return tuple(
        Shard(split, number, tuple(key for _, _, key in images))
        for (split, number), images in groupby(columns, key=lambda row: row[:2])
    )


def replace_dataset(
    folder: Path,
    workspace: Path,
    info: DatasetInfo,
    manifest: pa.Table,
    layout: Layout,
    tasks: list[ShardTask],
) -> None:
    """Put the new dataset in the place of the one in `folder`, whose kept shards it shares."""
    following = workspace / _NEXT
    following.mkdir()
    for shard in layout.kept:
        _link(folder / shard.name, following / shard.name)
    for task in tasks:
        _link(task.path, following / task.shard.name)
    write_table(manifest, following / "manifest.parquet")
    write_table(index_of(manifest, info.classes), following / "index.parquet")
    for name in ("manifest.parquet", "index.parquet"):
        flush_to_disk(following / name)
    write_json(following / "shards.json", _about_shards(following, layout))
    write_dataset_info(info, following)
    if folder.exists():
        folder.rename(workspace / _BEFORE)
    following.rename(folder)


def _about_shards(folder: Path, layout: Layout) -> dict[str, object]:
    return {
        shard.name: {
            "images": len(shard.keys),
            "bytes": (folder / shard.name).stat().st_size,
        }
        for shard in sorted(layout.shards, key=lambda shard: shard.name)
    }


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system knows no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
        flush_to_disk(target)
