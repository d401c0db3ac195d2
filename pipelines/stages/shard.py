"""DVC stage `shard`: a source -> data/shards/<dataset>, every input accepted or left out."""

from pathlib import Path
from typing import cast, get_args

from mae.data.sharding.removals import REMOVALS, read_removals
from mae.data.sharding.run import shard_dataset
from mae.data.sources import Dataset
from mae.errors import ParamsError
from mae.files import write_json
from mae.params import Params
from pipelines.harness import run_stage


def main(params: Params, arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0] not in get_args(Dataset):
        raise ParamsError("usage: python -m pipelines.stages.shard images|scenes")
    dataset = cast(Dataset, arguments[0])
    folder = Path("data/shards") / dataset
    info = shard_dataset(
        dataset,
        params.data,
        params.seed,
        folder,
        read_removals(REMOVALS),
        executor=params.runtime.executor,
    )
    metrics = {
        "seen": info.seen,
        "accepted": info.accepted,
        "quarantined": info.quarantined,
        "set_aside": info.set_aside,
        "classes": len(info.classes),
        "categories": len(info.categories),
        **info.splits,
    }
    write_json(Path(f"artifacts/metrics/shard-{dataset}.json"), metrics)


if __name__ == "__main__":
    run_stage("shard", main)
