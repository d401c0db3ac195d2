"""Fewer bits say nearly the same, whatever the pixels, and what is to stay in float32 does."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mae.export.description import EncoderDescription
from mae.export.onnx_export import PixelEncoder, write_onnx
from mae.export.variants import write_half, write_int8, write_int8_static
from mae.model.artifact import random_encoder
from mae.model.encoder import Architecture
from mae.pixels import PixelStatistics

Sources = tuple[Path, Path, EncoderDescription]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A 16-bit encoder of free resolution as a fused graph, as a plain one, and its description."""
    folder = tmp_path_factory.mktemp("variants")
    architecture = Architecture(2, 12, 32, (4, 8), 32, 3, 2, 2.0, positions="learned")
    statistics = PixelStatistics((0.4, 0.6), (0.2, 0.25), 16)
    about = EncoderDescription(architecture, statistics, 1.0, {}, "dynamic")
    model = PixelEncoder(random_encoder(architecture, seed=1), statistics)
    for name, optimize in (("encoder.onnx", True), ("plain.onnx", False)):
        write_onnx(folder / name, model, about, opset=20, optimize=optimize)
    return folder / "encoder.onnx", folder / "plain.onnx", about


def images(count: int, height: int = 12, width: int = 32) -> np.ndarray:
    """Up to the largest pixel of 16 bits, which is beyond float16."""
    draw = np.random.default_rng(count)
    pixels = draw.integers(0, 65536, (count, 2, height, width)).astype(np.uint16)
    pixels[:, :, :2] = 65535
    return pixels


def answers(path: Path, pixels: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    values = session.run(["cls", "mean", "patches"], {"images": pixels})
    assert {value.dtype for value in values} == {np.dtype(np.float32)}
    return values


def smallest_cosine(path: Path, source: Path, pixels: np.ndarray) -> float:
    pairs = zip(answers(path, pixels), answers(source, pixels), strict=True)
    return min(
        float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
        for a, b in pairs
    )


def described(path: Path) -> EncoderDescription:
    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    return EncoderDescription.from_metadata(properties)


def test_half(sources: Sources, tmp_path: Path) -> None:
    source, _, about = sources
    path = tmp_path / "half.onnx"
    write_half(source, path, about)
    for pixels in (images(5), images(2, 20, 8)):
        assert smallest_cosine(path, source, pixels) > 0.99999
    assert path.stat().st_size < 0.7 * source.stat().st_size
    graph = onnx.load(path).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}
    half = [name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16]
    assert len(half) >= 3 * 4
    assert described(path).precision == "fp16"


def test_int8(sources: Sources, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, _, about = sources
    path = tmp_path / "int8.onnx"
    write_int8(source, path, about, ())
    assert capfd.readouterr() == ("", "")
    for pixels in (images(5), images(2, 20, 8)):
        assert 0.99 < smallest_cosine(path, source, pixels) < 0.999999
    assert described(path).precision == "int8"
    integers = [t for t in onnx.load(path).graph.initializer if t.name.endswith("_quantized")]
    assert len(integers) == 1 + 3 * 4
    for tensor in integers:  # 7 bits, so that pairs of products do not overflow
        assert np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() <= 64


@pytest.mark.parametrize(
    ("keep", "integers"),
    [
        (("patches",), 12),
        (("first_block",), 9),
        (("last_block",), 9),
        (("mlp",), 7),
        (("attention",), 7),
        (("patches", "mlp", "last_block"), 4),
    ],
)
@pytest.mark.parametrize("static", [False, True])
def test_parts_that_stay_float(
    sources: Sources, tmp_path: Path, keep: tuple[str, ...], integers: int, static: bool
) -> None:
    source, plain, about = sources
    path = tmp_path / "int8.onnx"
    if static:
        write_int8_static(plain, path, about, keep, [images(2)])
    else:
        write_int8(source, path, about, keep)
    made = [t.name for t in onnx.load(path).graph.initializer if t.name.endswith("_quantized")]
    assert len([name for name in made if "bias" not in name]) == integers


def test_static_int8_takes_its_scales_from_the_images(sources: Sources, tmp_path: Path) -> None:
    source, plain, about = sources
    good, dark = tmp_path / "good.onnx", tmp_path / "dark.onnx"
    write_int8_static(plain, good, about, (), [images(4), images(1, 20, 8)])
    write_int8_static(plain, dark, about, (), [np.zeros((2, 2, 12, 32), np.uint16)])
    assert described(good).precision == "int8_static"
    reached = smallest_cosine(good, source, images(6))
    assert reached > 0.98
    assert smallest_cosine(dark, source, images(6)) < reached


def test_same_bytes_again(sources: Sources, tmp_path: Path) -> None:
    source, plain, about = sources
    for name in ("a", "b"):
        write_half(source, tmp_path / f"half-{name}.onnx", about)
        write_int8(source, tmp_path / f"int8-{name}.onnx", about, ("patches",))
        write_int8_static(plain, tmp_path / f"static-{name}.onnx", about, (), [images(3)])
    for kind in ("half", "int8", "static"):
        a, b = (tmp_path / f"{kind}-{name}.onnx" for name in "ab")
        assert a.read_bytes() == b.read_bytes(), kind
