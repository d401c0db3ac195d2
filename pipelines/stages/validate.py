"""DVC stage `validate`: manifests -> data/validation/verdict.json, and a stop where data is bad."""

from collections import Counter
from pathlib import Path

from mae.data.dataset import read_dataset_info
from mae.data.expectations import validate_datasets
from mae.files import write_json
from mae.params import Params
from pipelines.harness import run_stage

SHARDS = Path("data/shards")
VERDICT = Path("data/validation/verdict.json")
DOCS = Path("artifacts/data_docs")


def main(params: Params, arguments: list[str]) -> None:
    # A verdict of other data must not outlive a fault below.
    VERDICT.unlink(missing_ok=True)
    images, scenes = (read_dataset_info(SHARDS / name) for name in ("images", "scenes"))
    verdict = validate_datasets(images, scenes, params.validate_, DOCS)
    write_json(VERDICT, verdict.to_dict())
    failed = Counter(one.severity for one in verdict.findings if not one.success)
    metrics = {
        "passed": int(verdict.passed),
        "expectations": len(verdict.findings),
        **{f"failed_{severity}": failed[severity] for severity in ("critical", "warning", "info")},
    }
    write_json(Path("artifacts/metrics/validate.json"), metrics)
    verdict.demand_passed()


if __name__ == "__main__":
    run_stage("validate", main)
