"""Turns are fair and their numbers right; who cannot run is left out, and said to be."""

import csv
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mae.errors import CheckpointError, MaestroError
from mae.export import benchmark, contenders
from mae.export.benchmark import least_cosine, made_up_images, measure_speed, take_turns
from mae.export.contenders import Contender, Entered, why
from mae.export.description import EncoderDescription
from mae.export.onnx_export import PixelEncoder, write_onnx
from mae.export.speed import Speed, Timing, write_timings
from mae.export.speed_picture import draw_speed
from mae.export.variants import write_int8
from mae.files import write_json
from mae.model.artifact import load_encoder
from mae.params import BenchmarkParams
from tests.report.made_up import speed as made_up_speed
from tests.small_project import pretrained_project

ROOT = Path(__file__).parents[2]
QUICK = BenchmarkParams(batches=(1, 3), rounds=2, seconds=0.001, compile=False, threads=1)


# --- turns, on a clock of our own -----------------------------------------------------------------


class Clock:
    """Time that passes while somebody runs, and never otherwise."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def runner(self, name: str, *durations: float):
        """Return a run that takes these times, one after the other and round again."""
        taken = 0

        def run() -> None:
            nonlocal taken
            self.order.append(name)
            self.now += durations[taken % len(durations)]
            taken += 1

        return run


def test_turns_last_their_time_and_the_first_call_does_not_count() -> None:
    clock = Clock()
    laps = take_turns([clock.runner("a", 1.0), clock.runner("b", 0.25)], 2, 1.0, clock)
    assert laps == [[[1.0], [1.0]], [[0.25] * 4, [0.25] * 4]]
    rounds = ["aa" + "b" * 5, "b" * 5 + "aa"]  # who began one round ends the next
    assert "".join(clock.order) == "".join(rounds)


def test_a_call_longer_than_a_turn_is_measured_all_the_same() -> None:
    clock = Clock()
    assert take_turns([clock.runner("slow", 30.0)], 3, 0.1, clock) == [[[30.0]] * 3]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 100))
def test_everyone_has_each_round_and_time_enough(
    costs: list[int], rounds: int, seconds: int
) -> None:
    clock = Clock()
    runs = [clock.runner(str(i), float(cost)) for i, cost in enumerate(costs)]
    for cost, of_it in zip(costs, take_turns(runs, rounds, seconds, clock), strict=True):
        assert len(of_it) == rounds
        for turn in of_it:
            assert sum(turn) >= seconds and sum(turn) - cost < seconds


def test_percentiles_and_rate_are_medians_over_the_rounds() -> None:
    """Against sorted values by hand: 101 calls of 1 to 101 ms, and two rounds beside it."""
    laps = [[i / 1e3 for i in range(1, 102)], [0.051] * 4, [9.0]]
    timing = benchmark._timing(Contender("fp32", "cpu", np.asarray), 2, laps, 0.5, 0.99)
    assert timing.p50_ms == pytest.approx(51.0)  # of 51, 51 and 9000
    assert timing.p95_ms == pytest.approx(96.0)  # of 96, 51 and 9000
    assert timing.p99_ms == pytest.approx(100.0)
    assert timing.images_per_second == pytest.approx(2 / 0.051, abs=0.01)
    assert (timing.calls, timing.batch, timing.first_call_s) == (106, 2, 0.5)


def test_cosine_is_the_smallest_and_of_no_number_minus_one() -> None:
    a = np.array([[1, 0], [3, 4]], np.float32)
    b = np.array([[5, 0], [4, 3]], np.float32)
    assert least_cosine(a, b) == pytest.approx(24 / 25)
    assert least_cosine(a, a * np.float32("nan")) == -1
    assert least_cosine(a, np.zeros_like(a)) == 0


# --- a real encoder ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """artifacts/pretrain, and artifacts/export with two encoders and a refusal."""
    root = tmp_path_factory.mktemp("benchmark")
    pretrained_project(root)
    folder = root / "artifacts/export"
    folder.mkdir(parents=True)
    artifact = load_encoder(root / "artifacts/pretrain")
    about = EncoderDescription.of(artifact)
    model = PixelEncoder(artifact.encoder, artifact.statistics)
    write_onnx(folder / "encoder.onnx", model, about, 20)
    write_int8(folder / "encoder.onnx", folder / "encoder.int8.onnx", about, ())
    write_json(folder / "export.json", exported())
    return root


def exported(**files: str) -> dict:
    names = {"encoder.int8.onnx": "int8", "encoder.onnx": "fp32", **files}
    about = {name: {"precision": one, "kind": "encoder"} for name, one in names.items()}
    about["classifier.onnx"] = {"precision": "fp32", "kind": "classifier"}
    return {"files": about, "refused": {"fp16": "its cosine is 0.9"}, "resolution": "fixed"}


def measure(project: Path, params: BenchmarkParams = QUICK) -> Speed:
    artifacts = project / "artifacts"
    return measure_speed(artifacts / "pretrain", artifacts / "export", params, "cpu")


def test_every_contender_at_every_batch(project: Path) -> None:
    speed = measure(project)
    found = [(one.batch, one.contender) for one in speed.timings]
    assert found == [(n, name) for n in (1, 3) for name in ("torch", "fp32", "int8")]
    for one in speed.timings:
        assert 0 < one.p50_ms <= one.p95_ms <= one.p99_ms
        assert one.min_cosine > (0.9 if one.contender == "int8" else 0.99999)
        assert one.images_per_second > 0 and one.calls >= 2
    assert speed.left_out == {"fp16_cpu": "the export refused it, for reasons it names"}
    assert speed.threads == {"torch": 1, "onnxruntime": 1}
    assert Speed.from_dict(json.loads(json.dumps(speed.to_dict()))) == speed


def test_torch_has_its_threads_back(project: Path) -> None:
    before = torch.get_num_threads()
    with contenders.torch_threads(before + 1) as within:
        assert within == before + 1
    assert torch.get_num_threads() == before
    measure(project)
    assert torch.get_num_threads() == before


def test_numbers_for_the_metrics(project: Path) -> None:
    numbers = made_up_speed(gpu=True).numbers()
    assert numbers["p50_ms"] == numbers["p50_ms_fp32_cuda"] == pytest.approx(0.05)
    assert numbers["p99_ms_int8_cpu"] == pytest.approx(1.5 / 4)
    assert numbers["images_per_second_torch_cpu"] == 3000
    assert numbers["images_per_second"] == numbers["images_per_second_fp32_cuda"]
    assert len(numbers) == 4 * (8 + 1)
    assert all(isinstance(value, float) for value in numbers.values())


def test_images_are_the_encoders_and_always_the_same(tmp_path: Path) -> None:
    architecture = {"channels": 4, "height": 6, "width": 10}
    about = {"format": 2, "architecture": architecture, "statistics": {"bit_depth": 16}}
    write_json(tmp_path / "encoder.json", about)
    images = made_up_images(tmp_path, 5)
    assert (images.shape, images.dtype) == ((5, 4, 6, 10), np.uint16)
    assert images.max() > 60_000
    np.testing.assert_array_equal(images, made_up_images(tmp_path, 5))
    about["statistics"] = {"bit_depth": 8}
    write_json(tmp_path / "encoder.json", about)
    assert made_up_images(tmp_path, 1).dtype == np.uint8


# --- who cannot run ---------------------------------------------------------------------------


def entering(monkeypatch: pytest.MonkeyPatch, name: str, run) -> None:
    """Add a contender to those that there really are."""
    found = benchmark.contenders

    def with_it(*arguments) -> Entered:
        entered = found(*arguments)
        return Entered([*entered.contenders, Contender(name, "cpu", run)], entered.left_out)

    monkeypatch.setattr(benchmark, "contenders", with_it)


def test_one_that_fails_is_left_out_of_all_batches(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails_on_many(images: np.ndarray) -> np.ndarray:
        if len(images) > 1:
            raise RuntimeError("out of memory\nand a page of addresses")
        return np.zeros((1, 16), np.float32)

    entering(monkeypatch, "greedy", fails_on_many)
    with caplog.at_level(logging.WARNING, logger="mae"):
        speed = measure(project)
    assert speed.left_out["greedy_cpu"] == "out of memory"
    assert "greedy" not in {one.contender for one in speed.timings}
    assert "greedy_cpu is not measured: out of memory" in caplog.text


@pytest.mark.slow
def test_compiled_torch_takes_part(project: Path) -> None:
    speed = measure(project, QUICK.model_copy(update={"compile": True}))
    compiled = [one for one in speed.timings if one.contender == "torch_compile"]
    assert [one.batch for one in compiled] == [1, 3]
    assert all(one.min_cosine > 0.99999 for one in compiled)
    assert compiled[0].first_call_s > 10 * compiled[0].p50_ms / 1e3


def test_without_a_compiler_torch_compile_is_left_out_in_plain_words(
    project: Path, tmp_path: Path
) -> None:
    """In a process of its own: a compiler that torch has found once stays found."""
    script = """
import sys
from pathlib import Path
from mae.export.benchmark import measure_speed
from mae.params import BenchmarkParams
params = BenchmarkParams(batches=(2,), rounds=1, seconds=0.001, compile=True, threads=1)
root = Path(sys.argv[1])
speed = measure_speed(root / "pretrain", root / "export", params, "cpu")
print(speed.left_out["torch_compile_cpu"])
"""
    environment = {"PATH": "/usr/bin", "CXX": str(tmp_path / "none"), "HOME": str(tmp_path)}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(project / "artifacts")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (
        "torch.compile needs a C++ compiler (such as g++), and there is none here"
    )


def test_file_that_is_gone_is_left_out_and_encoder_onnx_must_be_there(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(project, tmp_path / "copy")
    folder = tmp_path / "copy/artifacts/export"
    (folder / "encoder.int8.onnx").unlink()
    assert "does not exist" in measure(tmp_path / "copy").left_out["int8_cpu"]
    (folder / "encoder.onnx").write_bytes(b"cut")
    with pytest.raises(MaestroError, match=r"encoder\.onnx cannot run on cpu: .*not an ONNX file"):
        measure(tmp_path / "copy")
    write_json(folder / "export.json", {"files": {}, "refused": {}, "resolution": "fixed"})
    with pytest.raises(CheckpointError, match=r"export\.json is damaged \(KeyError: 'fp32'\)"):
        measure(tmp_path / "copy")
    (folder / "export.json").unlink()
    with pytest.raises(CheckpointError, match="run `dvc repro export`"):
        measure(tmp_path / "copy")


def test_why_is_one_line_or_the_errors_name() -> None:
    assert why(RuntimeError("first\nsecond")) == "first"
    assert why(MemoryError()) == "MemoryError"


# --- what is written --------------------------------------------------------------------------


def test_table_and_picture(tmp_path: Path) -> None:
    speed = made_up_speed(gpu=True)
    write_timings(tmp_path / "latency.csv", speed)
    with (tmp_path / "latency.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(speed.timings) == 16
    assert (
        Timing(**{k: type(v)(rows[5][k]) for k, v in vars(speed.timings[5]).items()})
        == (speed.timings[5])
    )
    draw_speed(speed, tmp_path / "both.png")
    draw_speed(made_up_speed(), tmp_path / "cpu.png")
    heights = {name: Image.open(tmp_path / f"{name}.png").height for name in ("both", "cpu")}
    assert heights["both"] > 1.8 * heights["cpu"]
    draw_speed(speed, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "both.png").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"timings": []}, {"timings": [{"contender": "fp32"}]}, {"device": "tpu"}],
)
def test_what_is_no_benchmark_is_not_read(changes: dict) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Speed.from_dict({**made_up_speed().to_dict(), **changes})
    assert Speed.from_dict(replace(made_up_speed(), context={}).to_dict()).context == {}


def test_stage_writes_all_of_its_files(project: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["benchmark"] = {**QUICK.model_dump(mode="json"), "batches": [1]}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.stages.benchmark"],
        cwd=project,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "torch on cpu" in done.stderr and "fp16_cpu is not measured" in done.stderr
    metrics = json.loads((project / "artifacts/metrics/benchmark.json").read_text())
    assert metrics["p50_ms"] == metrics["p50_ms_fp32_cpu"]
    content = json.loads((project / "artifacts/benchmark/latency.json").read_text())
    assert Speed.from_dict(content).numbers() == metrics
    assert content["context"]["params"]["benchmark"]["batches"] == [1]
    assert content["context"]["versions"]["onnxruntime"]
    assert content["context"]["cores_in_use_before"] >= 0
    plots = sorted(path.name for path in (project / "artifacts/plots/benchmark").iterdir())
    assert plots == ["latency.csv", "speed.png"]
