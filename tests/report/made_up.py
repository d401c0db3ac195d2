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
from mae.export.speed import Speed, Timing
from mae.export.speed_picture import draw_speed
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
    """What validate, pretrain, evaluate, export and benchmark would leave."""
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
    write_json(root / "artifacts/export/export.json", exported())
    write_json(root / "artifacts/benchmark/latency.json", speed().to_dict())
    draw_speed(speed(), root / "artifacts/plots/benchmark/speed.png")


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


def exported() -> dict[str, Any]:
    """Two encoders and a classifier, with int8 refused."""

    def file(precision: str, kind: str, off: float) -> dict[str, Any]:
        outputs = ("logits", "probabilities") if kind == "classifier" else ("cls", "mean")
        worst = {"max_abs": off, "max_abs_key": "dark/001.png"}
        worst |= {"min_cosine": 1 - off, "min_cosine_key": "bright/002.png"}
        slight = {**worst, "max_abs": off / 2, "min_cosine": 1 - off / 2}
        return {
            "precision": precision,
            "kind": kind,
            "mb": 4.79,
            "sha256": "ab" * 32,
            "data": [],
            "parity": {"CPUExecutionProvider": dict(zip(outputs, (worst, slight), strict=True))},
            "neighbours": None if kind == "classifier" else 0.984375,
            "decisions": None if kind == "classifier" else 1.0,
        }

    limits = {"max_abs": 1e-4, "min_cosine": 0.99999, "neighbours": 1.0, "decisions": 1.0}
    return {
        "format": 1,
        "files": {
            "classifier.onnx": file("fp32", "classifier", 1.5e-6),
            "encoder.fp16.onnx": file("fp16", "encoder", 3.1e-4),
            "encoder.onnx": file("fp32", "encoder", 2.3e-6),
        },
        "refused": {"int8": "the cosine of cls is 0.91, below export.parity.int8.min_cosine 0.99"},
        "parity_images": 64,
        "split": "test",
        "batches": [1, 2, 7, 64],
        "grids": [],
        "resolution": "fixed",
        "limits": {"fp32": limits, "fp16": {**limits, "max_abs": None, "min_cosine": 0.999}},
        "classifier": {"kind": "logistic", "feature": "mean", "c": 1.0, "accuracy": 0.9},
    }


def speed(*, gpu: bool = False) -> Speed:
    """torch, compiled torch and two files, on a CPU and perhaps a GPU that is ten times as fast."""
    timings = [
        Timing(name, device, batch, 100, *milliseconds, rate, first, cosine)
        for device, times in (("cpu", 1.0), ("cuda", 0.1))[: 2 if gpu else 1]
        for batch, many in ((1, 1), (32, 3))
        for name, fast, first, cosine in (
            ("torch", 1.0, 0.1, 1.0),
            ("torch_compile", 1.2, 9.0, 1.0),
            ("fp32", 2.0, 0.1, 1.0),
            ("int8", 4.0, 0.1, 0.9987),
        )
        for rate in [1000 * many * fast / times]
        for milliseconds in [tuple(1e3 * batch / rate * factor for factor in (1.0, 1.1, 1.5))]
    ]
    context = {**CONTEXT, "versions": {**CONTEXT["versions"], "onnxruntime": "1.31.0"}}
    return Speed(
        timings,
        {"fp16_cpu": "export.parity refused it"},
        "cuda" if gpu else "cpu",
        {"torch": 2, "onnxruntime": 0},
        context,
    )


def decision(**changes: Any) -> dict[str, Any]:
    """A challenger that was promoted after a comparison on the exam."""
    checks = [
        {
            "metric": "linear_probe.accuracy",
            "rule": "margin",
            "challenger": 0.91,
            "champion": 0.885,
            "bound": 0.0,
            "passed": True,
            "reason": "linear_probe.accuracy rose by 0.025",
        },
        {
            "metric": "export.file_mb",
            "rule": "ceiling",
            "challenger": 4.79,
            "champion": None,
            "bound": 400.0,
            "passed": True,
            "reason": "export.file_mb is 4.79, at most 400 is allowed",
        },
    ]
    content = {
        "promote": True,
        "reason": "linear_probe.accuracy rose by 0.025; wins in 97.0 % of the resamples",
        "checks": checks,
        "challenger": {"linear_probe.accuracy": 0.91, "pretrain.loss": "NaN"},
        "champion": {"linear_probe.accuracy": 0.885, "pretrain.loss": 0.3},
        "comparison": {
            "images": 1440,
            "champion_accuracy": 0.885,
            "challenger_accuracy": 0.91,
            "difference": 0.025,
            "low": 0.004,
            "high": 0.046,
            "win_share": 0.97,
            "confidence": 0.9,
            "resamples": 2000,
            "margin": 0.01,
            "feature": "cls",
            "only_champion": 12,
            "only_challenger": 48,
            "exam": {"sha256": "cd" * 32, "images": 1500, "vanished": 60, "relabelled": 0},
        },
        "remarks": ["the sources grew by 120 images"],
        "artifact": "encoder",
        "stage": "prod",
        "champion_version": "v0.1.0",
        "commit": COMMIT,
        "data_fingerprint": {"data/shards/images": "0f0f.dir"},
        "drift": {"images_mean": 0.03},
        "decided_at": "2026-11-21T03:12:45+00:00",
        "approval": None,
    }
    return {**content, **changes}


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
