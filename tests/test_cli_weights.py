"""`mae weights`: in, out, inspect; what comes in works in everything that takes an artifact."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from mae import cli
from mae.errors import CheckpointError, ParamsError
from mae.export.description import EncoderDescription
from mae.export.onnx_export import PixelEncoder, write_onnx
from mae.export.session import EncoderSession
from mae.model.artifact import load_encoder
from tests.model.weights.foreign import ReferenceMAE, timm_vit

RUNNER = CliRunner()


def invoke(*arguments: str) -> str:
    result = RUNNER.invoke(cli.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def mae_file(tmp_path: Path) -> Path:
    """A grey checkpoint of the release's kind: nothing of its heads or pixels is said in it."""
    path = tmp_path / "mae.pth"
    torch.save({"model": ReferenceMAE((16, 24), (4, 4), 1).state_dict()}, path)
    return path


GREY = ("--mean", "0.5", "--std", "0.25", "--heads", "4", "--decoder-heads", "2")


def test_in_and_out_again(mae_file: Path, tmp_path: Path) -> None:
    ours, out = tmp_path / "ours", tmp_path / "out.safetensors"
    said = invoke(
        *("weights", "import", str(mae_file), "--out", str(ours), *GREY),
        *("--target", "normalized_pixels", "--from", "reference"),
    )
    assert "encoder and decoder for 1 x 16 x 24" in said
    said = invoke("weights", "export", str(ours), "--to", "reference", "--out", str(out))
    assert "load_state_dict" in said
    said = invoke("weights", "inspect", str(out))
    assert "width 16, depth 2, 2 heads, sincos positions" in said
    assert "normalized_pixels" in said
    said = invoke("weights", "inspect", str(ours))
    assert "imported from" in said and "mae.pth" in said


def test_imported_weights_reconstruct(mae_file: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    invoke(
        *("weights", "import", str(mae_file), "--out", str(ours), *GREY),
        *("--target", "normalized_pixels"),
    )
    picture = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "image.png")
    said = invoke(
        *("reconstruct", "--checkpoint", str(ours), "--images", str(tmp_path / "image.png")),
        *("--out", str(tmp_path / "panel.png"), "--device", "cpu"),
    )
    assert "true patch statistics were used" in said


def test_imported_weights_export_to_onnx(tmp_path: Path) -> None:
    """Pooled before the last norm, with positions of its own: nothing is lost on the way."""
    file = tmp_path / "vit.safetensors"
    theirs = timm_vit(img_size=(24, 24), num_classes=7, global_pool="avg")
    save_file(theirs.state_dict(), file)
    invoke(
        *("weights", "import", str(file), "--out", str(tmp_path / "ours"), "--heads", "4"),
        *("--from", "timm"),
    )
    artifact = load_encoder(tmp_path / "ours")
    onnx = tmp_path / "encoder.onnx"
    write_onnx(
        onnx,
        PixelEncoder(artifact.encoder, artifact.statistics),
        EncoderDescription.of(artifact),
        opset=20,
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 24, 24), dtype=np.uint8)
    mean, std = (
        torch.tensor(value)[:, None, None]
        for value in (artifact.statistics.mean, artifact.statistics.std)
    )
    with torch.no_grad():
        tokens = theirs.forward_features((torch.from_numpy(images) / 255 - mean) / std)
        expected = theirs.forward_head(tokens, pre_logits=True)
    found = EncoderSession(onnx, "cpu")(images)["mean"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_faults_are_sentences(mae_file: Path, tmp_path: Path) -> None:
    def fault(*arguments: str) -> Exception:
        result = RUNNER.invoke(cli.app, ["weights", *arguments])
        assert result.exit_code != 0
        assert isinstance(result.exception, CheckpointError | ParamsError), result.output
        return result.exception

    ours = str(tmp_path / "ours")
    into = ("import", str(mae_file), "--out", ours)
    assert "--heads" in str(fault(*into))
    assert "no list of numbers" in str(fault(*into, "--mean", "0.5;0.5"))
    assert "8 or 16" in str(fault(*into, "--bit-depth", "12"))
    assert "not huggingface" in str(fault(*into, "--from", "huggingface"))
    assert "does not exist" in str(fault("inspect", str(tmp_path / "nowhere")))
    assert "run the pretrain stage" in str(fault("export", ours, "--to", "timm", "--out", "x"))
    invoke("weights", *into, *GREY, "--encoder-only")
    out = ("export", ours, "--out", str(tmp_path / "x"))
    assert "end in .safetensors" in str(fault(*out, "--to", "timm"))
    assert "square images" in str(fault(*out, "--to", "vit_mae"))
    (tmp_path / "x").mkdir()
    (tmp_path / "x/thesis.tex").write_text("precious")
    assert "give another name" in str(fault(*out, "--to", "vit"))
    onto = ("import", str(mae_file), "--out", str(tmp_path / "x"), *GREY, "--encoder-only")
    assert "give another name" in str(fault(*onto))
    assert (tmp_path / "x/thesis.tex").read_text() == "precious"
