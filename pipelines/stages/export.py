"""DVC stage `export`: the pretrained encoder -> artifacts/export/encoder.onnx, behind its gate."""

from pathlib import Path

from mae.export.export import export_encoder
from mae.files import write_json
from mae.params import Params
from pipelines.harness import run_stage

PRETRAINED, SHARDS = Path("artifacts/pretrain"), Path("data/shards/images")
FOLDER, METRICS = Path("artifacts/export"), Path("artifacts/metrics/export.json")


def main(params: Params, arguments: list[str]) -> None:
    numbers = export_encoder(PRETRAINED, SHARDS, FOLDER, params.export, params.runtime)
    write_json(METRICS, numbers)


if __name__ == "__main__":
    run_stage("export", main)
