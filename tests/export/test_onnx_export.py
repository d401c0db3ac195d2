"""The exported graph says what torch says, at any batch, shape, channels and bit depth."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch

from mae.errors import CheckpointError, MaestroError
from mae.export import graph_files, onnx_export
from mae.export.attention import fuse_attention
from mae.export.description import CLASSIFIER_OUTPUTS, OUTPUTS, EncoderDescription
from mae.export.graph_files import external_data_files
from mae.export.onnx_export import PixelClassifier, PixelEncoder, write_onnx
from mae.model.artifact import random_encoder
from mae.model.convolutional import ConvolutionalArchitecture
from mae.model.encoder import Architecture
from mae.model.heads import Classifier
from mae.pixels import PixelStatistics


def encoder(
    channels: int = 1, bit_depth: int = 8, resolution: str = "fixed", **more: Any
) -> tuple[PixelEncoder, EncoderDescription]:
    """A non-square encoder on a non-square grid of non-square patches."""
    architecture = Architecture(
        channels=channels,
        height=12,
        width=32,
        patch=(4, 8),
        dim=16,
        depth=2,
        heads=2,
        mlp_ratio=2,
        **more,
    )
    shares = np.linspace(0.2, 0.7, channels)
    statistics = PixelStatistics(tuple(shares), tuple(shares / 2 + 0.05), bit_depth)
    training = {"steps": 7, "commit": "c0ffee", "params": {"model": {"dim": 16}}}
    about = EncoderDescription(architecture, statistics, 1.25, training, resolution)
    resize = 1.25 if resolution == "resized" else None
    return PixelEncoder(random_encoder(architecture, seed=1), statistics, resize), about


def random_images(count: int, about: EncoderDescription, *sides: int) -> np.ndarray:
    a = about.architecture
    shape = (count, a.channels, *(sides or (a.height, a.width)))
    high = about.statistics.full_scale + 1
    return np.random.default_rng(count).integers(0, high, shape).astype(about.dtype)


def opened(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def normalised(images: np.ndarray, about: EncoderDescription) -> torch.Tensor:
    """By an oracle of its own: (pixels / full scale - mean) / std."""
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (about.statistics.mean, about.statistics.std)
    )
    pixels = torch.from_numpy(images.astype(np.float64)) / about.statistics.full_scale
    return ((pixels - mean) / std).float()


@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 8), (3, 16), (13, 8)])
def test_agrees_with_torch_at_any_batch(tmp_path: Path, channels: int, bit_depth: int) -> None:
    model, about = encoder(channels, bit_depth)
    write_onnx(tmp_path / "encoder.onnx", model, about, opset=20, optimize=channels == 3)
    session = opened(tmp_path / "encoder.onnx")
    for count in (1, 2, 3, 17):
        images = random_images(count, about)
        with torch.no_grad():
            expected = model.encoder(normalised(images, about))
        got = session.run(list(OUTPUTS), {"images": images})
        assert got[2].shape == (count, 16, 3, 4)
        for name, value in zip(OUTPUTS, got, strict=True):
            np.testing.assert_allclose(value, getattr(expected, name), atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    "more", [{"channels": 4}, {"positions": "learned", "pad": True, "pooled_norm": True}]
)
def test_dynamic_resolution_at_any_grid(tmp_path: Path, more: dict[str, Any]) -> None:
    model, about = encoder(resolution="dynamic", **more)
    write_onnx(tmp_path / "encoder.onnx", model, about, opset=20, optimize=True)
    session = opened(tmp_path / "encoder.onnx")
    assert session.get_inputs()[0].shape == ["N", about.architecture.channels, "H", "W"]
    assert session.get_outputs()[2].shape == ["N", 16, "Hp", "Wp"]
    for count, hp, wp in ((1, 3, 4), (2, 3, 4), (1, 1, 1), (2, 5, 1), (1, 2, 11), (3, 9, 5)):
        images = random_images(count, about, 4 * hp, 8 * wp)
        with torch.no_grad():
            expected = model.encoder(normalised(images, about))
        got = session.run(list(OUTPUTS), {"images": images})
        assert got[2].shape == (count, 16, hp, wp)
        for name, value in zip(OUTPUTS, got, strict=True):
            np.testing.assert_allclose(value, getattr(expected, name), atol=2e-5, err_msg=name)


def test_a_convolutional_encoder_at_any_grid(tmp_path: Path) -> None:
    architecture = ConvolutionalArchitecture(channels=2, height=16, width=24, dim=8)
    statistics = PixelStatistics((0.4, 0.5), (0.2, 0.3))
    about = EncoderDescription(architecture, statistics, 1.0, {}, "dynamic")  # type: ignore[arg-type]
    model = PixelEncoder(random_encoder(architecture, seed=0), statistics)  # type: ignore[arg-type]
    write_onnx(tmp_path / "encoder.onnx", model, about, opset=20, optimize=True)
    session = opened(tmp_path / "encoder.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert EncoderDescription.from_metadata(metadata) == about
    for sides in ((16, 24), (40, 8)):
        images = random_images(3, about, *sides)
        with torch.no_grad():
            expected = model(torch.from_numpy(images))
        for value, true in zip(session.run(None, {"images": images}), expected, strict=True):
            np.testing.assert_allclose(value, true, atol=2e-5)


@pytest.mark.parametrize(("channels", "bit_depth"), [(3, 8), (1, 16)])
def test_resizes_inside_the_graph(tmp_path: Path, channels: int, bit_depth: int) -> None:
    from mae.data.loading.views import evaluation_views

    model, about = encoder(channels, bit_depth, resolution="resized")
    write_onnx(tmp_path / "encoder.onnx", model, about, opset=20, optimize=True)
    session = opened(tmp_path / "encoder.onnx")
    plain = PixelEncoder(model.encoder, about.statistics)
    for count, height, width in ((1, 12, 32), (2, 50, 41), (1, 1, 1), (3, 7, 100), (1, 128, 128)):
        images = random_images(count, about, height, width)
        seen = torch.from_numpy(evaluation_views(images, 12, 32, 1.25))
        with torch.no_grad():
            expected = plain(seen)
        for value, true in zip(session.run(None, {"images": images}), expected, strict=True):
            np.testing.assert_allclose(value, true, atol=2e-5)


def test_classifier(tmp_path: Path) -> None:
    made, about = encoder(channels=3)
    classifier = Classifier(made.encoder, 5, "cls", init_std=0.5, seed=0)
    about = replace(about, kind="classifier", classes=tuple("abcde"))
    model = PixelClassifier(classifier, about.statistics)
    write_onnx(tmp_path / "classifier.onnx", model, about, opset=20, optimize=True)
    session = opened(tmp_path / "classifier.onnx")
    assert [one.name for one in session.get_outputs()] == list(CLASSIFIER_OUTPUTS)
    images = random_images(4, about)
    logits, probabilities = session.run(None, {"images": images})
    with torch.no_grad():
        features = made.encoder(normalised(images, about)).cls
        expected = features @ classifier.head.weight.T + classifier.head.bias
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    np.testing.assert_allclose(probabilities, expected.softmax(dim=1), atol=1e-5)
    read = EncoderDescription.from_metadata(session.get_modelmeta().custom_metadata_map)
    assert read == about
    assert read.classes == ("a", "b", "c", "d", "e")


# --- one graph -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "encoder.onnx"
    write_onnx(path, *encoder(), opset=20, optimize=True)
    return path


def test_file_carries_where_it_comes_from_and_no_paths(written: Path) -> None:
    content = written.read_bytes()
    assert str(Path(onnx_export.__file__).parents[2]).encode() not in content
    properties = {p.key: p.value for p in onnx.load_from_string(content).metadata_props}
    assert properties["maestro.commit"] == "c0ffee"
    assert properties["maestro.data_fingerprint"] == "unknown"
    assert properties["maestro.params"] == '{"model": {"dim": 16}}'
    assert "15 x 40" in properties["maestro.preprocessing"]
    assert EncoderDescription.from_metadata(properties) == encoder()[1]


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"maestro.format": "99"}, ValueError, "format is 99"),
        ({"maestro.kind": "oracle"}, ValueError, "'oracle'"),
        ({"maestro.format": None}, KeyError, "maestro.format"),
    ],
)
def test_foreign_metadata(changed: dict[str, Any], error: type[Exception], says: str) -> None:
    metadata = {**encoder()[1].to_metadata(), **changed}
    with pytest.raises(error, match=says):
        EncoderDescription.from_metadata({k: v for k, v in metadata.items() if v is not None})


@pytest.mark.parametrize(
    ("resolution", "good", "bad"),
    [("fixed", (12, 32), (16, 32)), ("dynamic", (4, 80), (4, 81)), ("resized", (1, 999), (0, 9))],
)
def test_shapes_are_checked(resolution: str, good: tuple[int, int], bad: tuple[int, int]) -> None:
    about = encoder(3, resolution=resolution)[1]
    about.check(np.zeros((2, 3, *good), np.uint8), "x.onnx")
    for images in (
        np.zeros((2, 3, *bad), np.uint8),
        np.zeros((2, 1, *good), np.uint8),
        np.zeros((2, 3, *good), np.uint16),
        np.zeros((3, *good), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"x\.onnx takes uint8 images \(N, 3, "):
            about.check(images, "x.onnx")


def test_same_encoder_gives_the_same_bytes_in_silence(
    written: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_onnx(tmp_path / "again.onnx", *encoder(), opset=20, optimize=True)
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "again.onnx").read_bytes() == written.read_bytes()


def test_attention_is_fused_and_says_the_same(written: Path, tmp_path: Path) -> None:
    model, about = encoder()
    write_onnx(tmp_path / "plain.onnx", model, about, opset=20)
    operators = {
        path: {(node.domain, node.op_type) for node in onnx.load(path).graph.node}
        for path in (written, tmp_path / "plain.onnx")
    }
    assert ("com.microsoft", "Attention") in operators[written]
    assert ("", "Softmax") not in operators[written]
    assert {domain for domain, _ in operators[tmp_path / "plain.onnx"]} == {""}
    images = random_images(3, about)
    both = [opened(path).run(None, {"images": images}) for path in operators]
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_attention_with_another_scale_is_left_alone(written: Path, tmp_path: Path) -> None:
    """The operator divides by the root of a head's width, whatever the graph did."""
    write_onnx(tmp_path / "plain.onnx", *encoder(), opset=20)
    assert fuse_attention(onnx_ir.load(tmp_path / "plain.onnx"), heads=2) == 2
    assert fuse_attention(onnx_ir.load(written), heads=2) == 0
    other = onnx.load(tmp_path / "plain.onnx")
    scales = [
        tensor
        for tensor in other.graph.initializer
        if not tensor.dims and np.isclose(onnx.numpy_helper.to_array(tensor), 8**-0.5)
    ]
    assert scales
    for tensor in scales:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.25), tensor.name))
    assert fuse_attention(onnx_ir.from_proto(other), heads=2) == 0


# --- files ---------------------------------------------------------------------------------------


def test_weights_too_large_for_one_file_lie_beside_it_and_move_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, about = encoder()
    path = tmp_path / "made/encoder.onnx"
    with monkeypatch.context() as small:
        small.setattr(graph_files, "_ONE_FILE_BYTES", 0)
        write_onnx(path, model, about, opset=20)
    assert external_data_files(path) == [tmp_path / "made/encoder.onnx.data"]
    assert external_data_files(path)[0].stat().st_size > 10_000
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "encoder.onnx",
        "encoder.onnx.data",
    ]
    moved = path.parent.rename(tmp_path / "moved") / "encoder.onnx"
    images = random_images(3, about)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).cls.numpy()
    (got,) = opened(moved).run(["cls"], {"images": images})
    np.testing.assert_allclose(got, expected, atol=2e-5)
    # A later model that fits into one file leaves nothing of the old behind.
    write_onnx(moved, model, about, opset=20)
    assert [file.name for file in moved.parent.iterdir()] == ["encoder.onnx"]
    assert external_data_files(moved) == []


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no protocol buffer")
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        external_data_files(tmp_path / "x.onnx")
    with pytest.raises(CheckpointError, match="cannot be read"):
        external_data_files(tmp_path / "nowhere.onnx")


def test_impossible_opset_is_one_sentence_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(MaestroError, match=r"export\.opset 60"):
        write_onnx(tmp_path / "encoder.onnx", *encoder(), opset=60)
    assert not list(tmp_path.iterdir())
