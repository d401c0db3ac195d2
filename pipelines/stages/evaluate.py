"""python -m pipelines.stages.evaluate PROTOCOL: measure the pretrained encoder on one task."""

import importlib
import logging
import time
from dataclasses import asdict
from pathlib import Path

from mae.data.dataset import read_dataset_info
from mae.errors import ParamsError
from mae.files import write_json
from mae.model.artifact import read_info
from mae.params import Params
from mae.provenance import context
from mae.training.devices import resolve_device
from pipelines.harness import run_stage

LOG = logging.getLogger("pipelines.stages.evaluate")

# The dataset that each protocol measures on.
PROTOCOLS = {"knn": "images", "linear_probe": "images", "finetune": "images", "detection": "scenes"}

SHARDS, ARTIFACTS = Path("data/shards"), Path("artifacts")


def main(params: Params, arguments: list[str]) -> None:
    protocol = arguments[0] if len(arguments) == 1 else None
    if protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ParamsError(f"evaluate takes one protocol of {known}, not '{' '.join(arguments)}'")
    shards = SHARDS / PROTOCOLS[protocol]
    device = resolve_device(params.runtime.device)
    # What detection draws is an out of its stage beside the numbers.
    more = {"pictures": ARTIFACTS / "plots" / protocol} if protocol == "detection" else {}
    started = time.monotonic()
    # Imported here: a protocol brings its own slow libraries.
    run = importlib.import_module(f"mae.evaluation.{protocol}").run
    outcome = run(params, shards, ARTIFACTS / "pretrain", device, **more)
    encoder = read_info(ARTIFACTS / "pretrain")
    result = {
        **asdict(outcome),
        "encoder": {key: encoder[key] for key in ("architecture", "training")},
        "context": context(
            protocol,
            params,
            ["data", f"evaluate.{protocol}"],
            data_fingerprint=read_dataset_info(shards).fingerprint,
            device=device,
            seconds=time.monotonic() - started,
        ),
    }
    write_json(ARTIFACTS / "results" / f"{protocol}.json", result)
    numbers = {"skipped": 1} if outcome.skipped else outcome.numbers
    write_json(ARTIFACTS / "metrics" / f"{protocol}.json", numbers)
    LOG.info("%s: %s", protocol, outcome.skipped or outcome.numbers)


if __name__ == "__main__":
    run_stage("evaluate", main)
