"""What the stages leave, with made-up numbers."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mae.data.dataset import read_dataset_info
from mae.evaluation.outcome import Compared, Outcome
from mae.evaluation.scores import measure_scores
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
    seen = ["500,0.9,3.5,2.5,", "1000,0.7,6.5,4.5,0.62"]
    header = "step,val_loss,rank_me,effective_rank,knn_accuracy"
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
    """What some of the protocols may say; there are no scenes."""
    few = compared("Fine-tuning, 10 labels per class", (0.891, 0.903, 0.915), (0.58, 0.61, 0.64))
    every = compared("Fine-tuning, all labels", (0.98, 0.982, 0.984), (0.981, 0.977, 0.985))
    probe = compared("Linear probe", (0.866, 0.87, 0.874), (0.574, 0.58, 0.586), "random encoder")
    outcomes = [
        Outcome(
            "finetune",
            {"accuracy_10_per_class": 0.903, "accuracy_all": 0.982, "gain_all": 0.001},
            (replace(few, paired=True, deciding=True), replace(every, paired=True, deciding=True)),
            {
                "10_per_class": finetuned(labels=20, wrong=5),
                "all": finetuned(labels=400, wrong=1),
                "images": {"test": 1000, "train": 400},
            },
            {"metric": "accuracy_all", "low": 0.94, "high": 0.97, "source": "A paper, table 3"},
        ),
        Outcome(
            "linear_probe",
            {"accuracy": 0.87, "accuracy_std": 0.004, "accuracy_random": 0.58},
            (probe,),
        ),
        Outcome(
            "knn",
            {"accuracy": 0.79, "accuracy_random": 0.55, "accuracy_pixels": 0.81, "k": 5},
            (
                compared("k nearest neighbours", (0.79,), (0.55,), "random encoder"),
                compared("k nearest neighbours", (0.79,), (0.81,), "raw pixels"),
            ),
        ),
        Outcome(
            "label_budget",
            {"accuracy_knn_1_percent": 0.3},
            detail={"verdict": "With 1 % of the labels it gains 7 points."},
        ),
        Outcome("detection", skipped="data.scenes.source is none: there are no scenes to work on"),
    ]
    return {outcome.protocol: asdict(outcome) for outcome in outcomes}


def compared(
    task: str,
    pretrained: tuple[float, ...],
    values: tuple[float, ...],
    baseline: str = "from scratch",
) -> Compared:
    return Compared(task, "top-1 accuracy", pretrained, baseline, values, images=1000)


def finetuned(labels: int, wrong: int) -> dict[str, Any]:
    """Two runs on ten images of each class, of which so many of `bright` are taken for `dark`."""
    labels_of = torch.arange(2).repeat_interleave(10)
    answers = labels_of.clone()
    answers[:wrong] = 1
    scores = measure_scores(torch.eye(2)[answers] * 3, labels_of).to_dict(("bright", "dark"))
    return {"arms": {"pretrained": {"runs": [{**scores, "labels": labels}] * 2}}}
