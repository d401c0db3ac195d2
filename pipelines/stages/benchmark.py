"""DVC stage `benchmark`: the encoder's speed in torch and in each exported file."""

import logging
import time
from dataclasses import replace
from pathlib import Path

from mae.params import Params
from pipelines.harness import run_stage

LOG = logging.getLogger("pipelines.stages.benchmark")

PRETRAINED, EXPORTED = Path("artifacts/pretrain"), Path("artifacts/export")
RESULT = Path("artifacts/benchmark/latency.json")
METRICS, PLOTS = Path("artifacts/metrics/benchmark.json"), Path("artifacts/plots/benchmark")


def main(params: Params, arguments: list[str]) -> None:
    import onnxruntime
    import psutil
    import torch

    from mae.export.benchmark import measure_speed
    from mae.export.speed import write_timings
    from mae.export.speed_picture import draw_speed
    from mae.files import write_json
    from mae.model.artifact import read_info
    from mae.provenance import context

    in_use = psutil.cpu_percent(interval=1.0) / 100 * (psutil.cpu_count() or 1)
    started = time.monotonic()
    speed = measure_speed(PRETRAINED, EXPORTED, params.benchmark, params.runtime.device)
    about = context(
        "benchmark",
        params,
        ["benchmark"],
        data_fingerprint=str(read_info(PRETRAINED)["training"].get("data_fingerprint")),
        device=torch.device(speed.device),
        seconds=time.monotonic() - started,
    )
    about["versions"]["onnxruntime"] = onnxruntime.__version__
    about["cores_in_use_before"] = round(in_use, 2)
    write_json(RESULT, replace(speed, context=about).to_dict())
    write_timings(PLOTS / "latency.csv", speed)
    draw_speed(speed, PLOTS / "speed.png")
    write_json(METRICS, speed.numbers())
    for timing in speed.latencies:
        LOG.info("%s on %s: %.3g ms a call", timing.label, timing.device, timing.p50_ms)


if __name__ == "__main__":
    run_stage("benchmark", main)
