"""Sharding CIFAR-10 from its two zip archives, validating it, and letting it grow.

    python -m benchmarks.sharding ../shared/data/cifar10 --json benchmarks/results/sharding.json

1. 60,000 images of train.zip and test.zip are sharded and validated in one go.
2. 50,000 images in a DVC repository with a remote get 500 more: which files change, and how many
   DVC pushes. The equality check: every old shard has the sha256 that it had.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import yaml

from mae.data.dataset import read_dataset_info
from mae.data.sharding.run import shard_dataset
from mae.data.validation.expectations import validate_datasets
from mae.files import sha256_of_file, write_json
from mae.params import DataParams, read_params

ROOT = Path(__file__).resolve().parents[1]


def data_params(path: Path, shard_mb: int = 512) -> DataParams:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["data"]
    content |= {
        "images": {"source": "folder", "path": str(path)},
        "scenes": {"source": "none"},
        "channels": 3,
        "shard_mb": shard_mb,
    }
    return DataParams.model_validate(content)


def timed(function: Any, *arguments: Any, **named: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    result = function(*arguments, **named)
    return result, time.perf_counter() - started


def in_one_go(zips: Path, place: Path) -> dict[str, Any]:
    params = data_params(zips)
    folder = place / "one" / "images"
    info, sharding = timed(shard_dataset, "images", params, 0, folder)
    _, again = timed(shard_dataset, "images", params, 0, folder)
    expected = read_params(ROOT / "params.yaml").validate_
    infos = [read_dataset_info(folder)]
    validation, validating = timed(
        validate_datasets, infos, expected, place / "reference", place / "docs"
    )
    return {
        "images": info.accepted,
        "quarantined": info.quarantined,
        "set_aside": info.set_aside,
        "sharding_seconds": round(sharding, 1),
        "images_per_second": round(info.accepted / sharding),
        "again_seconds": round(again, 1),
        "validating_seconds": round(validating, 1),
        "passed": validation.verdict.passed,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def growing(zips: Path, place: Path) -> dict[str, Any]:
    source, project = place / "source", place / "project"
    project.mkdir()
    unpack(zips / "train.zip", source, "", every=1)
    for command in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["dvc", "remote", "add", "-q", "-d", "there", str(place / "remote")],
    ):
        subprocess.run(command, cwd=project, check=True)
    params = data_params(source, shard_mb=32)
    folder = project / "shards"
    before = shard_and_push(params, folder, project)
    unpack(zips / "test.zip", source, "new-", every=20)
    after = shard_and_push(params, folder, project)
    old = before["shards"]
    return {
        "images": [before["images"], after["images"]],
        "old_shards": len(old),
        "old_shards_unchanged": sum(after["shards"].get(name) == sha for name, sha in old.items()),
        "new_shards": len(after["shards"]) - len(old),
        "sharding_seconds": [before["seconds"], after["seconds"]],
        "files_pushed": [before["pushed"], after["pushed"]],
        "megabytes_pushed": [before["megabytes"], after["megabytes"]],
    }


def unpack(path: Path, folder: Path, prefix: str, every: int) -> None:
    """Write every so many-th image of an archive into its class's folder."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        for name in names[::every]:
            *_, label, file = name.split("/")
            (folder / label).mkdir(parents=True, exist_ok=True)
            (folder / label / f"{prefix}{file}").write_bytes(archive.read(name))


def shard_and_push(params: DataParams, folder: Path, project: Path) -> dict[str, Any]:
    info, seconds = timed(shard_dataset, "images", params, 0, folder)
    subprocess.run(["dvc", "add", "-q", folder.name], cwd=project, check=True)
    remote = project.parent / "remote"
    was = size_of(remote)
    subprocess.run(["dvc", "push", "-q"], cwd=project, check=True)
    now = size_of(remote)
    shards = {str(path.relative_to(folder)): sha256_of_file(path) for path in folder.rglob("*.mdb")}
    return {
        "images": info.accepted,
        "seconds": round(seconds, 1),
        "shards": shards,
        "pushed": now[0] - was[0],
        "megabytes": round((now[1] - was[1]) / 2**20, 2),
    }


def size_of(folder: Path) -> tuple[int, int]:
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(files), sum(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zips", type=Path, help="the folder with train.zip and test.zip")
    parser.add_argument("--json", type=Path, help="where to record the results")
    arguments = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    place = Path(tempfile.mkdtemp(prefix="maestro-sharding-"))
    try:
        results = {
            "in_one_go": in_one_go(arguments.zips, place),
            "growing": growing(arguments.zips, place),
        }
    finally:
        shutil.rmtree(place)
    print(json.dumps(results, indent=2))
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
