"""DVC stage `export`: the pretrained encoder -> ONNX files in artifacts/export, behind a gate."""

from pathlib import Path

from mae.export.export import export_encoder
from mae.files import write_json
from mae.params import Params
from pipelines.harness import run_stage

PRETRAINED, SHARDS = Path("artifacts/pretrain"), Path("data/shards/images")
RESULTS = Path("artifacts/results")
FOLDER, METRICS = Path("artifacts/export"), Path("artifacts/metrics/export.json")


def main(params: Params, arguments: list[str]) -> None:
    numbers = export_encoder(PRETRAINED, SHARDS, FOLDER, params, RESULTS)
    write_json(METRICS, numbers)


if __name__ == "__main__":
    run_stage("export", main)
