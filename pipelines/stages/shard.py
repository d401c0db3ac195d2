"""DVC stage `shard`: a source -> data/shards/<dataset>, every input accepted or quarantined."""

from pathlib import Path
from typing import cast, get_args

from mae.data.sharding import shard_dataset
from mae.data.sources import Dataset
from mae.errors import ParamsError
from mae.files import write_json
from mae.params import Params
from pipelines.harness import run_stage


def main(params: Params, arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0] not in get_args(Dataset):
        raise ParamsError("usage: python -m pipelines.stages.shard images|scenes")
    dataset = cast(Dataset, arguments[0])
    info = shard_dataset(dataset, params.data, params.seed, Path("data/shards") / dataset)
    metrics = {
        "seen": info.seen,
        "accepted": info.accepted,
        "quarantined": info.quarantined,
        "classes": len(info.classes),
        "categories": len(info.categories),
        **info.splits,
    }
    write_json(Path(f"artifacts/metrics/shard-{dataset}.json"), metrics)


if __name__ == "__main__":
    run_stage("shard", main)
