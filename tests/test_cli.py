"""The `mae` command: each subcommand does its work, and a fault is one sentence."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from mae import __version__, cli
from mae.export.description import EncoderDescription
from mae.export.onnx_export import PixelEncoder, write_onnx
from mae.model.artifact import load_encoder
from tests.small_project import ROOT, pretrained_project, small_params

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    pretrained_project(root)
    artifact = load_encoder(root / "artifacts/pretrain")
    write_onnx(
        root / "artifacts/export/encoder.onnx",
        PixelEncoder(artifact.encoder, artifact.statistics),
        EncoderDescription.of(artifact),
        opset=20,
    )
    return root


def invoke(*arguments: str) -> str:
    result = RUNNER.invoke(cli.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_embed(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    said = invoke(
        *("embed", "--model", str(project / "artifacts/export/encoder.onnx"), "--device", "cpu"),
        *("--images", str(project / "source"), "--out", str(out), "--feature", "mean"),
    )
    assert "40 images embedded" in said
    assert "1 left out, listed in" in said
    assert pq.read_table(out).num_rows == 40


@pytest.mark.parametrize("what", ["source", "source/dark/001.png"])
def test_reconstruct_folder_or_file(project: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "panel.png"
    said = invoke(
        *("reconstruct", "--checkpoint", str(project / "artifacts/pretrain")),
        *("--images", str(project / what), "--out", str(out), "--limit", "2"),
    )
    assert f"{2 if what == 'source' else 1} images drawn" in said
    assert "taken from the true patch" in said
    assert Image.open(out).width > 300


def test_data_show(project: Path) -> None:
    said = invoke("data", "show", str(project / "data/shards/images"))
    assert "2 (bright, dark)" in said
    assert "not_an_image" in said
    assert "dark/text.png" in said
    assert "data.scenes.source is none" in invoke(
        "data", "show", str(project / "data/shards/scenes")
    )


def test_params_with_and_without_data(project: Path, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    content = small_params(project / "source").model_dump(mode="json", by_alias=True)
    file.write_text(yaml.safe_dump(content))
    said = invoke("params", str(file), "--shards", str(project / "data/shards/images"))
    assert "is valid" in said
    assert "24 of 4 x 4, 6 visible" in said
    assert f"{content['pretrain']['epochs']} steps (1 per epoch)" in said
    assert "is not there yet" in invoke("params", str(file), "--shards", str(tmp_path))


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mae.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_a_fault_is_one_sentence_with_its_exit_code(project: Path, tmp_path: Path) -> None:
    bad = tmp_path / "params.yaml"
    bad.write_text((ROOT / "params.yaml").read_text().replace("seed: 0", "sed: 0"))
    done = run("params", str(bad), cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'seed'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_version_need_no_slow_library(tmp_path: Path) -> None:
    script = (
        "import sys; from mae import cli\n"
        "try: cli.main()\n"
        "finally: print(sorted({'torch', 'onnxruntime', 'pyarrow', 'fastapi', 'usearch'}"
        " & sys.modules.keys()))"
    )
    for flag, expected in (("--help", "embed"), ("--version", f"mae {__version__}")):
        done = subprocess.run(
            [sys.executable, "-c", script, flag], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
        assert done.stdout.strip().endswith("[]")
