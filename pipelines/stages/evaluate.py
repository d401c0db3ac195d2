"""python -m pipelines.stages.evaluate PROTOCOL: measure the pretrained encoder on one task."""

import importlib
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from mae.errors import ParamsError
from mae.params import Params
from mae.params.evaluation import Protocol
from mae.training.launch import launch_if_wanted
from pipelines.harness import run_stage

LOG = logging.getLogger("pipelines.stages.evaluate")

_MODULE = "pipelines.stages.evaluate"
_SHARED = ("minival", "baselines", "linear", "finetune")  # read by several protocols
SHARDS, ARTIFACTS = Path("data/shards"), Path("artifacts")


def main(params: Params, arguments: list[str]) -> None:
    protocols = (*get_args(Protocol), "detection")
    protocol = " ".join(arguments)
    if protocol not in protocols:
        known = ", ".join(protocols)
        raise ParamsError(f"evaluate takes one protocol of {known}, not '{protocol}'")
    scenes = protocol == "detection"  # which learns in one process alone
    launch, device = params.runtime.launch, params.runtime.device
    if scenes or not launch_if_wanted(launch, _MODULE, arguments, device=device):
        _measure(params, protocol, SHARDS / ("scenes" if scenes else "images"))


def _measure(params: Params, protocol: str, shards: Path) -> None:
    from mae.data.dataset import read_dataset_info
    from mae.files import write_json
    from mae.model.artifact import read_info
    from mae.provenance import context
    from mae.training.devices import joined

    started = time.monotonic()
    pictures = ARTIFACTS / "plots" / protocol  # an out of the stage beside the numbers
    pictures.mkdir(parents=True, exist_ok=True)
    run = importlib.import_module(f"mae.evaluation.{protocol}").run
    with joined(params.runtime.device) as place:
        outcome = run(params, shards, ARTIFACTS / "pretrain", place, pictures)
        if not place.leads:
            return
    encoder = read_info(ARTIFACTS / "pretrain")
    result = {
        **asdict(outcome),
        "encoder": {key: encoder[key] for key in ("architecture", "training")},
        "context": context(
            protocol,
            params,
            ["data", *(f"evaluate.{name}" for name in (*_SHARED, protocol))],
            data_fingerprint=read_dataset_info(shards).fingerprint,
            device=place.device,
            seconds=time.monotonic() - started,
        ),
    }
    write_json(ARTIFACTS / "results" / f"{protocol}.json", result)
    numbers = {"skipped": 1} if outcome.skipped else outcome.numbers
    write_json(ARTIFACTS / "metrics" / f"{protocol}.json", numbers)
    LOG.info("%s: %s", protocol, outcome.skipped or outcome.numbers)


if __name__ == "__main__":
    run_stage("evaluate", main)
