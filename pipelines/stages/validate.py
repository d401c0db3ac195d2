"""DVC stage `validate`: manifests -> data/validation/, and a stop where data is bad."""

from collections import Counter
from pathlib import Path

from mae.data.dataset import read_dataset_info
from mae.data.validation.expectations import Validation, validate_datasets
from mae.data.validation.verdict import SEVERITIES
from mae.files import write_json
from mae.params import Params
from pipelines.harness import run_stage

SHARDS = Path("data/shards")
REFERENCES = Path("data/reference")
VERDICT = Path("data/validation/verdict.json")
DOCS = Path("artifacts/data_docs")


def main(params: Params, arguments: list[str]) -> None:
    # A verdict of other data must not outlive a fault below.
    VERDICT.unlink(missing_ok=True)
    infos = [read_dataset_info(SHARDS / name) for name in ("images", "scenes")]
    found = validate_datasets(infos, params.validate_, REFERENCES, DOCS)
    for dataset, profile in found.profiles.items():
        write_json(VERDICT.with_name(f"profile-{dataset}.json"), profile)
    write_json(VERDICT, found.verdict.to_dict())
    write_json(Path("artifacts/metrics/validate.json"), _metrics(found))
    found.verdict.demand_passed()


def _metrics(found: Validation) -> dict[str, float]:
    failed = Counter(one.severity for one in found.verdict.worst_first())
    return {
        "passed": int(found.verdict.passed),
        "expectations": len(found.verdict.findings),
        **{f"failed_{severity}": failed[severity] for severity in SEVERITIES},
        **{
            f"drift_{dataset}_{column}": round(measure, 6)
            for dataset, drift in found.drifts.items()
            for column, measure in drift.measures.items()
        },
    }


if __name__ == "__main__":
    run_stage("validate", main)
