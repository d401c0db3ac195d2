"""The exported graph says what torch says, at any batch, shape, channels and bit depth."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mae.errors import MaestroError
from mae.export import onnx_export
from mae.export.description import OUTPUTS, EncoderDescription
from mae.export.onnx_export import PixelEncoder, write_onnx
from mae.export.session import EncoderSession
from mae.model.artifact import random_encoder
from mae.model.encoder import Architecture
from mae.pixels import PixelStatistics


def encoder(channels: int = 1, bit_depth: int = 8) -> tuple[PixelEncoder, EncoderDescription]:
    """A non-square encoder on a non-square grid of non-square patches."""
    architecture = Architecture(
        channels=channels, height=12, width=32, patch=(4, 8), dim=16, depth=1, heads=2, mlp_ratio=2
    )
    shares = np.linspace(0.2, 0.7, channels)
    statistics = PixelStatistics(tuple(shares), tuple(shares / 2 + 0.05), bit_depth)
    about = EncoderDescription(architecture, statistics, 1.25, {"steps": 7, "commit": "c0ffee"})
    return PixelEncoder(random_encoder(architecture, seed=1), statistics), about


def random_images(count: int, about: EncoderDescription) -> np.ndarray:
    a = about.architecture
    shape = (count, a.channels, a.height, a.width)
    high = about.statistics.full_scale + 1
    return np.random.default_rng(count).integers(0, high, shape).astype(about.dtype)


@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 8), (3, 16), (4, 8)])
def test_agrees_with_torch_at_any_batch(tmp_path: Path, channels: int, bit_depth: int) -> None:
    model, about = encoder(channels, bit_depth)
    write_onnx(tmp_path / "encoder.onnx", model, about, opset=20)
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    for count in (1, 2, 3, 17):
        images = random_images(count, about)
        # The oracle normalises by itself: (pixels / full scale - mean) / std.
        mean, std = (
            torch.tensor(values)[:, None, None]
            for values in (about.statistics.mean, about.statistics.std)
        )
        pixels = torch.from_numpy(images.astype(np.float64)) / about.statistics.full_scale
        with torch.no_grad():
            expected = model.encoder(((pixels - mean) / std).float())
        got = session.run(list(OUTPUTS), {"images": images})
        assert got[2].shape == (count, 16, 3, 4)
        for name, value in zip(OUTPUTS, got, strict=True):
            np.testing.assert_allclose(value, getattr(expected, name), atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "encoder.onnx"
    write_onnx(path, *encoder(), opset=20)
    return path


def test_file_carries_where_it_comes_from_and_no_paths(written: Path) -> None:
    content = written.read_bytes()
    assert str(Path(onnx_export.__file__).parents[2]).encode() not in content
    properties = {p.key: p.value for p in onnx.load_from_string(content).metadata_props}
    assert properties["maestro.commit"] == "c0ffee"
    assert properties["maestro.data_fingerprint"] == "unknown"
    assert "15 x 40" in properties["maestro.preprocessing"]
    assert EncoderSession(written, "cpu").about == encoder()[1]


def test_same_encoder_gives_the_same_bytes_in_silence(
    written: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_onnx(tmp_path / "again.onnx", *encoder(), opset=20)
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "again.onnx").read_bytes() == written.read_bytes()


def test_weights_too_large_for_one_file_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_ONE_FILE_BYTES", 0)
    model, about = encoder()
    write_onnx(tmp_path / "encoder.onnx", model, about, opset=20)
    assert (tmp_path / "encoder.onnx.data").stat().st_size > 10_000
    images = random_images(3, about)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).cls.numpy()
    got = EncoderSession(tmp_path / "encoder.onnx", "cpu")(images, ("cls",))["cls"]
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_impossible_opset_is_one_sentence_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(MaestroError, match=r"export\.opset 60"):
        write_onnx(tmp_path / "encoder.onnx", *encoder(), opset=60)
    assert not list(tmp_path.iterdir())
