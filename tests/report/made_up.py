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
    "expected": None,
}


def write_findings(root: Path) -> None:
    """What validate, pretrain, evaluate and export would leave."""
    fingerprint = read_dataset_info(root / "data/shards/images").fingerprint
    write_json(root / "data/validation/verdict.json", verdict(fingerprint))
    curve = root / "artifacts/plots/pretrain/loss.csv"
    curve.parent.mkdir(parents=True)
    rows = [f"{step},{0.4 + 0.6 * math.exp(-step / 300)}" for step in range(0, 2000, 20)]
    curve.write_text("\n".join(["step,loss", *rows]) + "\n")
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
    def runs(pretrained: list[float], scratch: list[float]) -> dict[str, Any]:
        pairs = zip(pretrained, scratch, strict=True)
        return {
            "recipe": "recipe",
            "runs": [{"pretrained": {"top1": a}, "scratch": {"top1": b}} for a, b in pairs],
        }

    return {
        "finetune": {
            "numbers": {
                "accuracy_10_per_class": 0.903,
                "accuracy_10_per_class_std": 0.012,
                "accuracy_10_per_class_scratch": 0.61,
                "accuracy_10_per_class_scratch_std": 0.03,
                "gain_10_per_class": 0.293,
                "gain_10_per_class_std": 0.02,
                "accuracy_all": 0.982,
                "accuracy_all_std": 0.002,
                "accuracy_all_scratch": 0.981,
                "accuracy_all_scratch_std": 0.004,
                "gain_all": 0.001,
                "gain_all_std": 0.003,
            },
            "detail": {
                "10_per_class": runs([0.891, 0.903, 0.915], [0.58, 0.61, 0.64]),
                "all": runs([0.98, 0.982, 0.984], [0.981, 0.977, 0.985]),
            },
        },
        "linear_probe": {
            "numbers": {
                "accuracy": 0.87,
                "accuracy_std": 0.004,
                "accuracy_random": 0.58,
                "accuracy_random_std": 0.006,
            },
            "detail": {
                "pretrained": [{"top1": value} for value in (0.866, 0.87, 0.874)],
                "random": [{"top1": value} for value in (0.574, 0.58, 0.586)],
            },
        },
        "knn": {
            "numbers": {
                "accuracy": 0.79,
                "accuracy_random": 0.55,
                "accuracy_pixels": 0.81,
                "k": 5,
            },
        },
        "detection": {"skipped": "data.scenes.source is none: there are no scenes to work on"},
    }
