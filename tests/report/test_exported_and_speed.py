"""Parity file by file, and speed beside torch's, in words, tables and a picture."""

import shutil
from pathlib import Path

import pytest

from mae.errors import DataError
from mae.files import read_json, write_json
from mae.report.benchmarked import not_measured, speed_in_words, speed_table
from mae.report.exported import Exported
from tests.report.made_up import exported, speed
from tests.report.test_report import build, words


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    shutil.copytree(project, tmp_path / "copy")
    return tmp_path / "copy"


def test_every_file_with_its_limits_and_worst_images(copy: Path) -> None:
    text = words(build(copy)[0])
    for part in (
        "On 64 held-out images, at batches of 1, 2, 7 and 64, onnxruntime differs from torch by at "
        "most 2.3e-06, with a cosine of at least 0.999998.",
        "encoder.onnx 4.79 2.3e-06 0.999998 ≥ 0.99999 98.4 % 100.0 % CPU",
        "encoder.fp16.onnx 4.79 3.1e-04 0.999690 ≥ 0.999 98.4 % 100.0 % CPU",
        "classifier.onnx 4.79 1.5e-06 0.999999 ≥ 0.99999 CPU",
        "int8 was refused: the cosine of cls is 0.91, below export.parity.int8.min_cosine 0.99",
        "encoder.fp16.onnx CPU cls 3.1e-04 dark/001.png 0.999690 bright/002.png",
        "classifier.onnx CPU probabilities",
    ):
        assert part in text, part
    order = [text.index(f"{name} 4.79") for name in ("encoder.onnx", "encoder.fp16.onnx")]
    assert order == sorted(order) and order[-1] < text.index("classifier.onnx 4.79")


def test_speed_in_the_page_and_the_card(copy: Path) -> None:
    page, card = build(copy)
    lead = (
        "On the CPU, encoder.onnx takes 0.5 ms for an image (99 % of calls: at most 0.75 ms) and "
        "does 6,000 images per second in batches of 32: 2.0 and 2.0 times as fast as torch."
    )
    text = words(page)
    assert lead in text and lead in card
    for part in (
        "ONNX Runtime int8 0.25 0.275 0.375 12,000 32 4.00 0.99870",
        "torch.compile 0.833",
        "Threads: torch 2, onnxruntime as many as it chose.",
        "Compiling took 18 s, which is not counted.",
        "torch 2.13.0, onnxruntime 1.31.0.",
        "ONNX Runtime fp16 on the CPU was not measured: export.parity refused it.",
    ):
        assert part in text, part
    assert page.count('src="data:image/png') >= 2
    (copy / "artifacts/plots/benchmark/speed.png").unlink()
    assert lead in words(build(copy)[0])


def test_on_a_gpu_each_is_beside_torch_on_its_own_device() -> None:
    table = speed_table(speed(gpu=True))
    rows = {row[0]: row for row in table.rows}
    assert len(rows) == 8
    assert rows["ONNX Runtime fp32, GPU"][-2] == rows["ONNX Runtime fp32, CPU"][-2] == "2.00"
    assert rows["torch, GPU"][-2] == ""
    assert "On the CUDA" not in speed_in_words(speed())
    assert speed_in_words(speed(gpu=True)).startswith("On the GPU, encoder.onnx takes 0.05 ms")
    assert not_measured(speed()) == [
        "ONNX Runtime fp16 on the CPU was not measured: export.parity refused it."
    ]


def test_figures_of_a_busy_machine_are_pointed_out(copy: Path) -> None:
    path = copy / "artifacts/benchmark/latency.json"
    content = read_json(path)
    content["context"]["cores_in_use_before"] = 0.4
    write_json(path, content)
    assert "busy" not in build(copy)[0]
    content["context"]["cores_in_use_before"] = 1.84
    write_json(path, content)
    assert "(1.8 of 2 cores)" in words(build(copy)[0])


def test_older_artifacts_without_either(copy: Path) -> None:
    for name in ("export/export.json", "benchmark/latency.json"):
        (copy / "artifacts" / name).unlink()
    shutil.rmtree(copy / "artifacts/plots/benchmark")
    page, card = build(copy)
    text = words(page)
    assert "artifacts/export/export.json: run `dvc repro export`" in text
    assert "artifacts/benchmark/latency.json: run `dvc repro benchmark`" in text
    assert "has not been exported yet" in text and "has not been measured yet" in text
    assert "run `dvc repro export`" in card


@pytest.mark.parametrize(
    ("name", "stage", "content"),
    [
        ("export/export.json", "export", {"files": {}}),
        ("export/export.json", "export", {**exported(), "files": {}}),
        ("export/export.json", "export", {**exported(), "limits": {}}),
        ("export/export.json", "export", []),
        ("benchmark/latency.json", "benchmark", {"timings": []}),
        ("benchmark/latency.json", "benchmark", {**speed().to_dict(), "device": "cuda"}),
    ],
)
def test_damaged_files_are_named(copy: Path, name: str, stage: str, content: object) -> None:
    write_json(copy / "artifacts" / name, content)
    with pytest.raises(DataError, match=f"{name} is damaged.*dvc repro.*{stage}"):
        build(copy)


def test_images_are_resized_by_whom(copy: Path) -> None:
    path = copy / "artifacts/export/export.json"
    assert "resize it (bicubic, antialiased)" in build(copy)[1]
    write_json(path, {**read_json(path), "resolution": "resized"})
    card = build(copy)[1]
    assert "resize it" not in card and "images of any height and width" in card


def test_why_there_is_no_classifier() -> None:
    content = exported() | {"classifier": {"skipped": "the images have no labels"}}
    del content["files"]["classifier.onnx"]
    content["files"]["encoder.onnx"]["decisions_skipped"] = "the images have no labels"
    assert Exported.from_dict(content).remarks == ["the images have no labels"]
