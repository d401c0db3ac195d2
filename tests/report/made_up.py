"""What the stages leave, with made-up numbers."""

import math
from pathlib import Path
from typing import Any

from PIL import Image

from mae.data.dataset import read_dataset_info
from mae.files import write_json
from tests.small_project import COMMIT

CONTEXT = {
    "data_fingerprint": "",
    "params": {"evaluate.knn": {"k": [5]}},
    "seed": 0,
    "commit": COMMIT,
    "hardware": {"cpu": "A CPU", "cores": 2, "gpu": None, "platform": "x86_64"},
    "versions": {"torch": "2.13.0", "maestro": "0.1.0"},
    "seconds": 1.0,
}


def write_findings(root: Path) -> None:
    """What validate, pretrain, evaluate and export would leave."""
    fingerprint = read_dataset_info(root / "data/shards/images").fingerprint
    write_json(root / "data/validation/verdict.json", verdict(fingerprint))
    curve = root / "artifacts/plots/pretrain/loss.csv"
    curve.parent.mkdir(parents=True)
    rows = [f"{step},{0.4 + 0.6 * math.exp(-step / 300)}" for step in range(0, 2000, 20)]
    curve.write_text("\n".join(["step,loss", *rows]) + "\n")
    seen = ["100,0.9,2.0,0.3", "200,0.5,8.0,0.6"]
    header = "step,val_loss,rank_me,knn_accuracy"
    curve.with_name("observed.csv").write_text("\n".join([header, *seen]) + "\n")
    Image.new("RGB", (60, 30), (120, 130, 140)).save(curve.with_name("reconstruction.png"))
    for protocol, content in results().items():
        content["context"] = {**CONTEXT, "data_fingerprint": fingerprint}
        write_json(root / f"artifacts/results/{protocol}.json", content)
    numbers = {"max_abs": 2.3e-6, "min_cosine": 0.9999999, "parity_images": 64.0, "file_mb": 4.79}
    write_json(root / "artifacts/metrics/export.json", numbers)


def verdict(fingerprint: str) -> dict[str, Any]:
    def finding(subject: str, severity: str, success: bool, observed: Any, limit: Any) -> dict:
        return {
            "dataset": "images",
            "expectation": "ExpectSomething",
            "column": None,
            "severity": severity,
            "success": success,
            "observed": observed,
            "limit": limit,
            "subject": subject,
            "advice": "look at the manifest",
        }

    findings = [
        finding("the number of accepted images", "critical", True, 40, {"min_value": 10}),
        finding("the share quarantined", "critical", True, 0.024391, {"max_value": 0.1}),
        finding("the splits with images", "critical", True, ["train"], {"value_set": ["train"]}),
        finding("the share of blank images", "warning", False, 0.2, {"max_value": 0.05}),
        finding("the aspect ratio", "info", True, 0.0, {"min_value": 0.2, "max_value": 5.0}),
    ]
    return {"passed": True, "fingerprints": {"images": fingerprint}, "expectations": findings}


def results() -> dict[str, dict[str, Any]]:
    def compared(
        task: str, pretrained: list[float], baseline: str, values: list[float], paired: bool
    ) -> dict[str, Any]:
        return {
            "task": task,
            "metric": "top-1 accuracy",
            "pretrained": pretrained,
            "baseline": baseline,
            "values": values,
            "paired": paired,
            "images": 1000,
            "deciding": task.startswith("Fine-tuning"),
        }

    few = compared(
        "Fine-tuning, 10 labels per class",
        [0.891, 0.903, 0.915],
        "from scratch",
        [0.58, 0.61, 0.64],
        paired=True,
    )
    whole = compared(
        "Fine-tuning, all labels",
        [0.98, 0.982, 0.984],
        "from scratch",
        [0.981, 0.977, 0.985],
        paired=True,
    )
    probe = compared(
        "Linear probe", [0.866, 0.87, 0.874], "random encoder", [0.574, 0.58, 0.586], paired=False
    )
    neighbours = [
        compared("k nearest neighbours", [0.79], name, [value], paired=False)
        for name, value in (("random encoder", 0.55), ("raw pixels", 0.81))
    ]
    return {
        "finetune": {
            "numbers": {"accuracy_10_per_class": 0.903, "accuracy_all": 0.982},
            "comparisons": [few, whole],
            "expected": {
                "metric": "accuracy_all",
                "low": 0.9,
                "high": 0.95,
                "source": "a made-up paper",
            },
        },
        "linear_probe": {
            "numbers": {"accuracy": 0.87, "accuracy_random": 0.58},
            "comparisons": [probe],
        },
        "knn": {
            "numbers": {"accuracy": 0.79, "accuracy_random": 0.55, "k": 5},
            "comparisons": neighbours,
        },
        "label_budget": {
            "numbers": {"accuracy_knn_1_percent": 0.3},
            "detail": {"verdict": "With 1 % of the labels it gains 7 points."},
        },
        "detection": {"skipped": "data.scenes.source is none: there are no scenes to work on"},
    }
