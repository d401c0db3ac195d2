"""The gate lets a faithful export pass and names what is wrong with any other."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mae.data.loading.loader import EvalLoader
from mae.data.reader import ShardReader
from mae.errors import DataError, MaestroError
from mae.export.description import EncoderDescription
from mae.export.export import export_encoder
from mae.export.onnx_export import PixelEncoder
from mae.export.parity import enforce_parity, held_out_images, measure_parity, parity_numbers
from mae.export.session import EncoderSession
from mae.model.artifact import load_encoder
from mae.params import ExportParams
from tests.small_project import Exported

LIMITS = ExportParams(opset=20, parity_images=64, max_abs=1e-4, min_cosine=0.99999)


def tampered(exported: Exported, path: Path) -> Path:
    """Give the file's last normalisation another bias: half more in the first entry."""
    model = onnx.load(exported.onnx)
    norm = [node for node in model.graph.node if node.op_type == "LayerNormalization"][-1]
    bias = np.zeros(16, np.float32)
    bias[0] = 0.5
    model.graph.initializer.append(onnx.numpy_helper.from_array(bias, "another.bias"))
    norm.input[2] = "another.bias"
    onnx.save(model, path)
    return path


def deviations_of(exported: Exported, onnx_file: Path) -> list:
    artifact = load_encoder(exported.pretrained)
    model = PixelEncoder(artifact.encoder, artifact.statistics)
    about = EncoderDescription.of(artifact)
    held_out = held_out_images(exported.shards, about, 6, exported.params.runtime)
    return measure_parity(model, EncoderSession(onnx_file, "cpu"), held_out)


def test_numbers_of_a_faithful_export(exported: Exported) -> None:
    numbers = exported.numbers
    reader = ShardReader(exported.shards, "test")
    assert numbers["parity_images"] == min(64, len(reader))
    assert 0 <= numbers["max_abs"] < 1e-4
    assert 0.99999 < numbers["min_cosine"] <= 1 + 1e-9
    assert numbers["max_abs"] == max(
        numbers[f"max_abs_{name}"] for name in ("cls", "mean", "patches")
    )
    assert numbers["file_mb"] == pytest.approx(exported.onnx.stat().st_size / 1e6, abs=1e-3)


def test_images_are_those_of_the_evaluation_loader(exported: Exported) -> None:
    about = EncoderSession(exported.onnx, "cpu").about
    held_out = held_out_images(exported.shards, about, 5, exported.params.runtime)
    reader = ShardReader(exported.shards, "test")
    loader = EvalLoader(reader, height=16, width=24, resize=1.0, batch=3, workers=1, cache_mb=0)
    everything = dict(zip(reader.keys, torch.cat([b.images for b in loader]), strict=True))
    assert held_out.split == "test"
    assert len(set(held_out.keys)) == 5
    for key, image in zip(held_out.keys, held_out.images, strict=True):
        np.testing.assert_array_equal(image, everything[key].numpy())


def test_tampered_weights_are_named_with_output_batch_image_and_numbers(
    exported: Exported, tmp_path: Path
) -> None:
    found = deviations_of(exported, tampered(exported, tmp_path / "x.onnx"))
    assert {one.batch for one in found} == {1, 2, 6}
    with pytest.raises(MaestroError) as caught:
        enforce_parity(found, LIMITS, "CPUExecutionProvider")
    message = str(caught.value)
    for part in ("output '", "batch ", "0.5", "0.0001", "cosine", "0.99999", ".png"):
        assert part in message, message
    assert parity_numbers(found)["max_abs_cls"] == pytest.approx(0.5, abs=1e-3)


def test_one_turned_vector_fails_on_cosine_alone(exported: Exported) -> None:
    loose = ExportParams(opset=20, parity_images=64, max_abs=1e9, min_cosine=0.99999)
    found = deviations_of(exported, exported.onnx)
    enforce_parity(found, loose, "CPU")
    turned = type(found[0])("mean", 2, 1e-3, "a.png", 0.5, "b.png")
    with pytest.raises(MaestroError, match=r"'mean' at batch 2.*cosine of 0\.5.*b\.png"):
        enforce_parity([*found, turned], loose, "CPU")


def test_nothing_is_left_behind_when_the_gate_fails(exported: Exported, tmp_path: Path) -> None:
    pretrained, runtime = exported.pretrained, exported.params.runtime
    strict = LIMITS.model_copy(update={"max_abs": 1e-12})
    with pytest.raises(MaestroError, match="nothing was exported"):
        export_encoder(pretrained, exported.shards, tmp_path / "export", strict, runtime)
    assert not list(tmp_path.iterdir())


def test_other_channels_than_the_data_are_refused(exported: Exported) -> None:
    about = EncoderSession(exported.onnx, "cpu").about
    colour = type(about.statistics)((0.5,) * 3, (0.2,) * 3, 8)
    other = type(about)(about.architecture, colour, 1.0, {})
    with pytest.raises(DataError, match=r"3 channel.* and the data has 1"):
        held_out_images(exported.shards, other, 5, exported.params.runtime)


def test_runs_where_there_is_only_numpy_and_onnxruntime(exported: Exported) -> None:
    """A user's script: no torch, nothing of ours."""
    script = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
shape = session.get_inputs()[0].shape
images = numpy.full((3, *shape[1:]), 128, dtype=numpy.uint8)
cls, mean, patches = session.run(["cls", "mean", "patches"], {"images": images})
assert numpy.isfinite(patches).all() and numpy.allclose(patches.mean((2, 3)), mean, atol=1e-5)
assert "torch" not in sys.modules and "mae" not in sys.modules
print(shape, cls.shape, patches.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(exported.onnx)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['N', 1, 16, 24] (3, 16) (3, 16, 4, 6)"
