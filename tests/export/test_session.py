"""A session refuses what is not ours, in one sentence, and says where it runs."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mae.errors import CheckpointError, ParamsError
from mae.export import session as session_module
from mae.export.session import EncoderSession
from tests.small_project import Exported


def test_says_what_it_runs_on(exported: Exported, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mae"):
        session = EncoderSession(exported.onnx, "cpu", threads=1)
    assert session.provider == "CPUExecutionProvider"
    assert "CPUExecutionProvider" in caplog.text


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        EncoderSession(tmp_path / "none.onnx", "cpu")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no protocol buffer")
    with pytest.raises(CheckpointError, match="not an ONNX file") as caught:
        EncoderSession(damaged, "cpu")
    assert "\n" not in str(caught.value)


def test_foreign_graph_is_refused(exported: Exported, tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "foreign", [value], [out])
    imports = [onnx.helper.make_opsetid("", 20)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=imports, ir_version=10), tmp_path / "f.onnx"
    )
    with pytest.raises(CheckpointError, match=r"not an encoder exported by Maestro.*x to y"):
        EncoderSession(tmp_path / "f.onnx", "cpu")


def test_our_graph_without_or_with_other_metadata(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.onnx)
    properties = {p.key: p.value for p in model.metadata_props}
    onnx.helper.set_model_props(model, {})
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(CheckpointError, match="metadata lacks"):
        EncoderSession(tmp_path / "bare.onnx", "cpu")
    onnx.helper.set_model_props(model, {**properties, "maestro.format": "99"})
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(CheckpointError, match="format is 99"):
        EncoderSession(tmp_path / "new.onnx", "cpu")


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 1, 16, 16), np.uint8),
        np.zeros((2, 1, 16, 24), np.float32),
        np.zeros((1, 16, 24), np.uint8),
    ],
)
def test_ill_shaped_images_are_refused(exported: Exported, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 images \(N, 1, 16, 24\)"):
        EncoderSession(exported.onnx, "cpu")(images)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_an_error(exported: Exported) -> None:
    with pytest.raises(ParamsError, match="cuda"):
        EncoderSession(exported.onnx, "cuda")


class WithoutCuda:
    """onnxruntime where torch sees a GPU that it cannot use itself: it falls back in silence."""

    @staticmethod
    def get_providers() -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_missed_gpu_is_never_silent(caplog: pytest.LogCaptureFixture) -> None:
    asked = [("CUDAExecutionProvider", {}), "CPUExecutionProvider"]
    with pytest.raises(ParamsError, match="onnxruntime cannot use it"):
        session_module._say_what_was_missed(WithoutCuda, asked, "cuda")
    session_module._say_what_was_missed(WithoutCuda, asked, "auto")
    assert "running on the CPU" in caplog.text
