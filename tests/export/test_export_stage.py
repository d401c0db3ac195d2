"""The stage as a whole: what lies in the folder, and what stays when the gate says no."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from mae import cli_export
from mae.data.loading.views import evaluation_view
from mae.errors import MaestroError
from mae.export.description import EncoderDescription
from mae.export.export import export_encoder
from mae.export.parity import ParityError
from mae.files import read_json, sha256_of_file, write_json
from mae.model.artifact import load_encoder, save_encoder_artifact
from mae.model.lora import add_adapters, merge
from mae.params import Params, parse_params
from tests.small_project import ROOT, Exported

FILES = {"encoder.onnx", "encoder.fp16.onnx", "encoder.int8.onnx", "encoder.int8_static.onnx"}


def with_export(params: Params, **changes: object) -> Params:
    content = params.model_dump(mode="json", by_alias=True)
    alone = {"precisions": ["fp32"], "classifier": None, "resolution": "fixed"}
    content["export"] |= {**alone, **changes}
    return parse_params(content)


def run(exported: Exported, folder: Path, results: Path | None = None, **changes: object) -> dict:
    params = with_export(exported.params, **changes)
    return export_encoder(exported.pretrained, exported.shards, folder, params, results)


def metadata(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(path).metadata_props}


def test_folder_holds_what_was_asked_for_and_what_was_found(exported: Exported) -> None:
    folder = exported.onnx.parent
    told = read_json(folder / "export.json")
    made = {path.name for path in folder.iterdir()} - {"export.json"}
    assert made == set(told["files"])
    refused = {f"encoder.{precision}.onnx" for precision in told["refused"]}
    assert made | refused == FILES | {"classifier.onnx"}
    assert not made & refused
    for name, file in told["files"].items():
        assert file["sha256"] == sha256_of_file(folder / name)
        assert file["mb"] == pytest.approx((folder / name).stat().st_size / 1e6, abs=1e-3)
        for outputs in file["parity"].values():
            assert all(one["max_abs_key"].endswith(".png") for one in outputs.values())
    assert set(told["files"]["encoder.onnx"]["parity"]["CPUExecutionProvider"]) == {
        *("cls", "mean", "patches")
    }
    assert told["batches"] == [1, 2, 7, told["parity_images"]]
    numbers = exported.numbers
    assert numbers["file_mb"] == told["files"]["encoder.onnx"]["mb"]
    assert numbers["max_abs"] < 1e-4
    assert numbers["min_cosine_fp16"] > 0.999
    assert not [name for name in numbers if "seconds" in name]


def test_nothing_is_left_behind_when_the_gate_fails(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "encoder.onnx").write_text("the old one")
    limits = exported.params.export.parity.model_dump()
    strict = {**limits, "fp32": {**limits["fp32"], "max_abs": 1e-12}}
    with pytest.raises(ParityError, match="nothing was exported"):
        run(exported, folder, parity=strict, on_refusal="leave_out")  # float32 always fails
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (folder / "encoder.onnx").read_text() == "the old one"


def test_a_precision_beyond_its_limits_fails_or_is_left_out(
    exported: Exported, tmp_path: Path
) -> None:
    limits = exported.params.export.parity.model_dump()
    strict = {**limits, "int8": {**limits["int8"], "min_cosine": 1.0}}
    asked = {"precisions": ["fp32", "int8"], "parity": strict}
    with pytest.raises(ParityError, match=r"int8.*Take int8 out of export\.precisions"):
        run(exported, tmp_path / "export", on_refusal="fail", **asked)
    assert not list(tmp_path.iterdir())
    numbers = run(exported, tmp_path / "export", on_refusal="leave_out", **asked)
    told = read_json(tmp_path / "export/export.json")
    assert set(told["files"]) == {"encoder.onnx"}
    assert "export.parity.int8.min_cosine 1" in told["refused"]["int8"]
    assert {path.name for path in (tmp_path / "export").iterdir()} == {
        *("encoder.onnx", "export.json")
    }
    assert "max_abs_int8" not in numbers


def test_what_was_measured_goes_into_the_file_unless_it_is_of_another(
    exported: Exported, tmp_path: Path
) -> None:
    training = load_encoder(exported.pretrained).info["training"]
    for name, of in (("knn", training), ("linear", {**training, "steps": 99})):
        result = {"numbers": {"accuracy": 0.75}, "skipped": None, "encoder": {"training": of}}
        write_json(tmp_path / "results" / f"{name}.json", result)
    run(exported, tmp_path / "export", tmp_path / "results")
    written = metadata(tmp_path / "export/encoder.onnx")
    assert json.loads(written["maestro.metrics"]) == {"knn": {"accuracy": 0.75}}
    assert json.loads(written["maestro.params"])["export"]["opset"] == 20


@pytest.mark.parametrize("resolution", ["dynamic", "resized"])
def test_other_resolutions_pass_the_same_gate(
    exported: Exported, tmp_path: Path, resolution: str
) -> None:
    numbers = run(exported, tmp_path / "export", resolution=resolution)
    told = read_json(tmp_path / "export/export.json")
    assert told["resolution"] == resolution
    assert numbers["max_abs"] < 1e-4
    if resolution == "resized":
        assert told["resizing"] == {"max_levels": 0.0, "mean_levels": 0.0}
    else:
        assert told["other_sizes"] == [[24, 24], [16, 36], [8, 20]]


@pytest.mark.parametrize("where", ["file", "file/export"])
def test_a_folder_that_cannot_be_written(exported: Exported, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MaestroError, match=r"cannot be written|is a file"):
        run(exported, tmp_path / where)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_merged_adapter_goes_through_the_command(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import typer
    import yaml

    artifact = load_encoder(exported.pretrained)
    for parameter in add_adapters(artifact.encoder, rank=2, alpha=4.0, seed=0):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    merge(artifact.encoder)
    training = {"commit": "c0ffee"}
    save_encoder_artifact(
        tmp_path / "lora", artifact.encoder, artifact.statistics, training, resize=1.0
    )
    params = with_export(exported.params, classifier="logistic")
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)))
    app = typer.Typer()
    app.command()(cli_export.export)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        app,
        [
            *("--pretrained", str(tmp_path / "lora"), "--data", str(exported.shards)),
            *("--out", str(tmp_path / "out"), "--classifier", "none", "--precision", "fp16"),
        ],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    assert "encoder.fp16.onnx" in result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("encoder.onnx", "encoder.fp16.onnx", "export.json")
    }
    assert metadata(tmp_path / "out/encoder.onnx")["maestro.commit"] == "c0ffee"


def test_runs_where_there_is_only_numpy_pillow_and_onnxruntime(
    exported: Exported, tmp_path: Path
) -> None:
    """The script in docs/, by a Python that finds neither torch nor anything of ours."""
    draw = np.random.default_rng(0)
    tall = draw.integers(0, 256, (40, 30), dtype=np.uint8)
    exact = draw.integers(0, 256, (16, 24), dtype=np.uint8)
    for name, pixels in (("tall.png", tall), ("exact.png", exact)):
        Image.fromarray(pixels).save(tmp_path / name)
    script = ROOT / "docs/run_encoder.py"
    program = (
        "import sys, runpy\n"
        "sys.modules['torch'] = sys.modules['mae'] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, script, exported.onnx, "tall.png", "exact.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["image"] for one in told] == ["tall.png", "exact.png"]
    import onnxruntime

    session = onnxruntime.InferenceSession(exported.onnx, providers=["CPUExecutionProvider"])
    seen = [evaluation_view(pixels[..., None], 16, 24, 1.0) for pixels in (tall, exact)]
    cls, mean = session.run(["cls", "mean"], {"images": np.stack(seen)})
    np.testing.assert_allclose(told[1]["cls"], cls[1], atol=1e-5)
    np.testing.assert_allclose(told[1]["mean"], mean[1], atol=1e-5)
    np.testing.assert_allclose(told[0]["mean"], mean[0], atol=0.05)  # Pillow rounds otherwise
    lines = [line for line in script.read_text().splitlines() if line.strip()]
    assert len(lines) <= 25
    about = EncoderDescription.from_metadata(session.get_modelmeta().custom_metadata_map)
    assert about.precision == "fp32"
