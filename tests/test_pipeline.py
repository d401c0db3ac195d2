"""The whole pipeline as its users run it: `dvc repro` on a project of its own, end to end."""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mae.data.dataset import read_dataset_info
from mae.data.manifest import read_manifest
from pipelines.processes import environment
from tests.data import zoo
from tests.pipeline_project import Ended, PipelineProject, Running, class_folders, coco_folder
from tests.pipelines.project import MARK, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DATASETS = ("images", "scenes")
WEIGHTS = ("artifacts/pretrain/autoencoder.safetensors", "artifacts/pretrain/encoder.safetensors")
PRETRAINED = (*WEIGHTS, "artifacts/plots/pretrain", "artifacts/metrics/pretrain.json")
OFTEN = 5e-4  # minutes between checkpoints: so a kill costs some steps, but never all of them


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for projects; none of their processes outlives it."""
    import psutil

    folder = tmp_path_factory.mktemp("pipeline")
    yield folder
    for process in psutil.process_iter():
        if environment(process).get(MARK, "").startswith(f"{folder}/"):
            process.kill()


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, dict[str, str | None]]:
    """The sources, and what must become of every file: quarantined for a reason, or None."""
    return {
        "images": class_folders(place / "images", 300),
        "scenes": coco_folder(place / "scenes", 30),
    }


@pytest.fixture(scope="module")
def prepared(place: Path, expected: object) -> PipelineProject:
    """A project whose data is sharded and validated."""
    project = PipelineProject.create(
        place / "prepared",
        **{
            "data.images": {"source": "folder", "path": str(place / "images")},
            "data.scenes": {"source": "coco", "path": str(place / "scenes")},
        },
    )
    ran = project.dvc("repro", "validate").stages_run
    assert sorted(ran) == ["shard@images", "shard@scenes", "validate"]
    return project


@pytest.fixture(scope="module")
def complete(prepared: PipelineProject) -> PipelineProject:
    """A project whose every stage has run, its results committed."""
    project = prepared.copy("complete")
    project.dvc("repro")
    project.commit("Results")
    return project


# --- the whole ----------------------------------------------------------------------------------


def test_every_stage_runs_to_its_end(complete: PipelineProject) -> None:
    assert json.loads(complete.dvc("status", "--json").said) == {}
    report = complete.root / "artifacts/report"
    assert {path.name for path in report.iterdir()} == {"index.html", "MODEL_CARD.md"}
    metrics = sorted((complete.root / "artifacts/metrics").glob("*.json"))
    assert len(metrics) == 10
    for path in metrics:
        numbers = json.loads(path.read_text())
        assert numbers, path
        assert all(math.isfinite(value) for value in numbers.values()), path


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_input_is_accepted_or_quarantined_for_its_reason(
    complete: PipelineProject, expected: dict[str, dict[str, str | None]], dataset: str
) -> None:
    folder = complete.root / "data/shards" / dataset
    info = read_dataset_info(folder)
    rows = read_manifest(folder).to_pylist()
    found = {row["key"]: None if row["accepted"] else row["reason"] for row in rows}
    assert {key.removeprefix("images/"): why for key, why in found.items()} == expected[dataset]
    assert info.seen == len(expected[dataset]) == info.accepted + info.quarantined + info.set_aside
    assert info.accepted == sum(info.splits.values())


def test_the_report_and_the_card_tell_what_was_quarantined(complete: PipelineProject) -> None:
    page = complete.read_text("artifacts/report/index.html")
    card = complete.read_text("artifacts/report/MODEL_CARD.md")
    for dataset in DATASETS:
        count = complete.read_json(f"artifacts/metrics/shard-{dataset}.json")["quarantined"]
        assert count > 0
        assert f"<dt>Quarantined</dt><dd>{count}</dd>" in page
        assert f"- Quarantined: {count}\n" in card
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?:https?:)?//""", page), "loads from a CDN"


def test_the_exported_encoder_embeds(complete: PipelineProject) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(complete.root / "artifacts/export/encoder.onnx"), providers=["CPUExecutionProvider"]
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 24, 24), dtype=np.uint8)
    cls, mean = session.run(["cls", "mean"], {"images": images})
    assert cls.shape == mean.shape == (3, 32)
    assert np.isfinite(cls).all()
    assert np.isfinite(mean).all()
    assert np.ptp(mean, axis=0).max() > 0, "every image has the same embedding"


# --- what runs again ----------------------------------------------------------------------------


# The exported files say what was measured of the encoder.
AFTER_KNN = ["evaluate@knn", "export", "benchmark", "report"]


def test_again_nothing_runs(complete: PipelineProject) -> None:
    again = complete.dvc("repro")
    assert again.stages_run == []
    assert "Data and pipelines are up to date." in again.said


def test_another_k_runs_its_protocol_and_what_tells_of_it(complete: PipelineProject) -> None:
    project = complete.copy("another-k")
    project.set(**{"evaluate.knn.k": [3]})
    assert project.dvc("repro").stages_run == AFTER_KNN

    changed = json.loads(project.dvc("params", "diff", "--json").said)
    assert changed == {"params.yaml": {"evaluate.knn.k": {"old": "[5, 10, 20]", "new": "[3]"}}}
    metrics = json.loads(project.dvc("metrics", "diff", "--json").said)
    timed = "artifacts/metrics/benchmark.json"  # another each time
    assert set(metrics) - {timed} == {"artifacts/metrics/knn.json"}
    assert metrics["artifacts/metrics/knn.json"]["k"]["new"] == 3

    project.dvc("plots", "show", "--out", "plots")
    page = project.read_text("plots/index.html")
    assert "Pretraining loss on hidden patches" in page
    drawn = (project.root / "plots").rglob("*reconstruction.png")
    assert any(path.stat().st_size for path in drawn)


def test_an_experiment_runs_and_is_shown(complete: PipelineProject) -> None:
    project = complete.copy("experiment")
    ran = project.dvc("exp", "run", "--name", "warmer", "-S", "evaluate.knn.temperature=0.1")
    assert ran.stages_run == AFTER_KNN
    baseline = json.loads(project.dvc("exp", "show", "--json").said)[-1]
    (experiment,) = baseline["experiments"]
    assert experiment["name"] == "warmer"
    (revision,) = experiment["revs"]
    assert revision["error"] is None
    assert (
        revision["data"]["params"]["params.yaml"]["data"]["evaluate"]["knn"]["temperature"] == 0.1
    )
    metrics = revision["data"]["metrics"]
    assert len(metrics) == 10
    assert not [name for name, one in metrics.items() if "error" in one]


def test_results_travel_through_a_remote(complete: PipelineProject, place: Path) -> None:
    project = complete.copy("origin")
    project.dvc("remote", "add", "-d", "storage", str(place / "storage"))
    project.commit("Remote")
    project.dvc("push")
    clone = project.clone("clone")
    assert not (clone.root / "artifacts/pretrain").exists()
    clone.dvc("pull")
    assert clone.contents("artifacts", "data") == project.contents("artifacts", "data")
    again = clone.dvc("repro")
    assert again.stages_run == []
    assert "Data and pipelines are up to date." in again.said


# --- interruptions ------------------------------------------------------------------------------


def kill_stage(project: PipelineProject) -> None:
    project.processes_of("pretrain")[0].kill()


def kill_everything(project: PipelineProject) -> None:
    for process in project.alive():
        process.kill()


def terminate_stage(project: PipelineProject) -> None:
    project.processes_of("pretrain")[0].terminate()


def strike(project: PipelineProject, blow: Callable[[PipelineProject], None]) -> Ended:
    """Run pretraining until it has gone some steps further, then strike; nothing may be left."""
    before = project.steps_saved()
    running: Running = project.begin("-m", "dvc", "repro", "pretrain")
    running.until(lambda: project.steps_saved() >= before + 20)
    blow(project)
    ended = running.end()
    assert ended.code != 0, ended.said
    wait_for(lambda: not project.alive())
    assert not (project.root / WEIGHTS[0]).exists(), "it ended before it was struck"
    return ended


def test_pretraining_killed_again_and_again_ends_with_the_same_bytes(
    prepared: PipelineProject, complete: PipelineProject
) -> None:
    project = prepared.copy("killed")
    project.set(**{"runtime.checkpoint_minutes": OFTEN})

    assert "continues after step" not in strike(project, kill_stage).said
    for blow in (kill_everything, terminate_stage):
        reached = project.steps_saved()
        ended = strike(project, blow)
        assert f"continues after step {reached} of " in ended.said
    reached = project.steps_saved()
    assert f"stopped by a signal at step {reached} of " in ended.said
    assert "state saved" in ended.said
    assert "exited with 75" in ended.said

    ended = project.dvc("repro", "pretrain")
    assert ended.stages_run == ["pretrain"]
    assert f"continues after step {reached} of " in ended.said
    assert project.contents(*PRETRAINED) == complete.contents(*PRETRAINED)


def test_two_processes_stop_together_continue_and_agree_with_one(
    prepared: PipelineProject, complete: PipelineProject
) -> None:
    project = prepared.copy("two-processes")
    project.set(**{"runtime.checkpoint_minutes": OFTEN, "runtime.launch.processes": 2})

    ended = strike(project, terminate_stage)
    assert "exited with 75" in ended.said
    assert "Traceback" not in ended.said
    reached = project.steps_saved()

    ended = project.dvc("repro", "pretrain")
    assert "starts 2 processes" in ended.said
    assert f"continues after step {reached} of " in ended.said
    assert not project.alive()
    for name in WEIGHTS:
        ours, theirs = learned(project.root / name), learned(complete.root / name)
        assert ours.keys() == theirs.keys()
        for key, weights in theirs.items():
            apart = np.abs(ours[key] - weights).max() / np.abs(weights).max()
            assert apart < 1e-4, key


def learned(path: Path) -> dict[str, np.ndarray]:
    """Return the weights that the loss determines.

    Attention is the same whatever the bias of its keys: their gradient is rounding alone, which
    Adam scales up to steps of any sign. So they agree between no two orders of summation.
    """
    weights = load_file(path)
    for name in [name for name in weights if name.endswith("attn.qkv.bias")]:
        query, _, value = np.split(weights.pop(name), 3)
        weights |= {f"{name}.query": query, f"{name}.value": value}
    return weights


# --- other data ---------------------------------------------------------------------------------


def test_images_without_labels_and_no_scenes(place: Path) -> None:
    zoo.write_images(place / "flat", 120, height=-1, channels=3)
    project = PipelineProject.create(
        place / "unlabelled",
        **{
            "data.images": {"source": "folder", "path": str(place / "flat")},
            "data.scenes": {"source": "none", "path": None},
            "data.channels": 3,
            "model.height": 16,
            "model.width": 24,
            "pretrain.epochs": 2,
        },
    )
    assert len(project.dvc("repro").stages_run) == 11
    card = project.read_text("artifacts/report/MODEL_CARD.md")
    page = project.read_text("artifacts/report/index.html")
    for protocol in ("knn", "linear_probe", "finetune", "detection"):
        result = project.read_json(f"artifacts/results/{protocol}.json")
        why = "data.scenes.source is none" if protocol == "detection" else "have no labels"
        assert why in result["skipped"]
        assert result["numbers"] == {}
        assert project.read_json(f"artifacts/metrics/{protocol}.json") == {"skipped": 1}
    for text in (page, card):
        assert "have no labels" in text
        assert "data.scenes.source is none" in text
    architecture = project.read_json("artifacts/pretrain/encoder.json")["architecture"]
    assert (architecture["channels"], architecture["height"], architecture["width"]) == (3, 16, 24)


# --- refusals -----------------------------------------------------------------------------------


def test_bad_data_stops_before_pretraining(prepared: PipelineProject) -> None:
    project = prepared.copy("too-few")
    project.set(**{"validate.min_images": 100_000})
    ended = project.begin("-m", "dvc", "repro").end()
    assert ended.code != 0
    assert ended.stages_run == ["validate"]
    assert "failed to reproduce 'validate'" in ended.said
    assert "exited with 3" in ended.said
    (sentence,) = re.findall(r"^\d\d:\d\d:\d\d ERROR +(.+)$", ended.said, re.MULTILINE)
    assert "the number of accepted images is 329 (at least 100000)" in sentence
    assert "Traceback" not in ended.said
    assert not (project.root / "artifacts/pretrain").exists()
    assert not (project.root / "runs").exists()


def test_an_unknown_parameter_is_refused_by_every_stage_and_costs_nothing(
    complete: PipelineProject,
) -> None:
    project = complete.copy("misspelt")
    before = project.contents("artifacts", "data", "runs")
    project.set(**{"pretrain.epochz": 3})
    stages = sorted(path.stem for path in (project.root / "pipelines/stages").glob("[!_]*.py"))
    assert len(stages) == 7
    begun = {stage: project.begin("-m", f"pipelines.stages.{stage}") for stage in stages}
    for stage, running in begun.items():
        ended = running.end()
        assert ended.code == 2, (stage, ended.said)
        assert "pretrain.epochz: unknown key; did you mean 'epochs'?" in ended.said
        assert "Traceback" not in ended.said
    assert project.contents("artifacts", "data", "runs") == before

    refused = project.begin("-m", "dvc", "repro").end()
    assert refused.stages_run == ["pretrain"]
    assert "exited with 2" in refused.said
    project.run("git", "checkout", "-q", "params.yaml")
    assert project.dvc("repro").stages_run == []
    assert project.contents("artifacts", "data", "runs") == before
