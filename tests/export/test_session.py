"""A session refuses what is not ours, in one sentence, and says where it runs."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from mae.errors import CheckpointError, MaestroError, ParamsError
from mae.export import runtime
from mae.export import session as session_module
from mae.export.binding import _KEPT, BoundRunner
from mae.export.runtime import CPU, CUDA, TENSORRT, Settings
from mae.export.session import ClassifierSession, EncoderSession, open_session
from mae.files import sha256_of_file
from tests.export.small_onnx import CLASSES, SmallOnnx, small_onnx, write_with_weights_beside

without_gpu = pytest.mark.skipif(runtime.gpus() > 0, reason="there is a GPU here")


@pytest.fixture(scope="module")
def small() -> SmallOnnx:
    return small_onnx()


@pytest.fixture(scope="module")
def session(small: SmallOnnx) -> EncoderSession:
    return EncoderSession(small.encoder, "cpu")


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 16, 24), dtype=np.uint8)


def plain(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=[CPU])


# --- what it gives ----------------------------------------------------------------------------


def test_gives_what_plain_onnxruntime_gives(small: SmallOnnx, session: EncoderSession) -> None:
    pixels = images(5)
    expected = plain(small.encoder).run(["cls", "mean", "patches"], {"images": pixels})
    got = session(pixels)
    assert list(got) == ["cls", "mean", "patches"]
    for value, wanted in zip(got.values(), expected, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-5)
    assert got["patches"].shape == (5, session.dim, 4, 6)
    assert list(session(pixels, ("mean",))) == ["mean"]


def test_a_classifier_gives_probabilities(small: SmallOnnx) -> None:
    classifier = ClassifierSession(small.classifier, "cpu")
    got = classifier(images(4))
    assert classifier.classes == CLASSES
    assert got.shape == (4, len(CLASSES))
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-5)
    (expected,) = plain(small.classifier).run(["probabilities"], {"images": images(4)})
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_a_batch_in_pieces_is_the_whole_batch(
    session: EncoderSession, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """25 tokens an image: 100 of them are 4 images, which 7 is no multiple of."""
    whole = session(images(count))
    monkeypatch.setattr(session_module, "_CACHED_TOKENS", 100)
    monkeypatch.setattr(session, "_threads", 1)
    calls = []
    run = session._session.run

    def counted(names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        calls.append(len(feed["images"]))
        return run(names, feed)

    monkeypatch.setattr(session, "_session", SimpleNamespace(run=counted))
    pieces = session(images(count))
    assert sum(calls) == count
    assert max(calls) <= 4
    for name, value in whole.items():
        assert pieces[name].shape == value.shape
        np.testing.assert_allclose(pieces[name], value, atol=1e-5)


def test_several_threads_may_call(session: EncoderSession) -> None:
    batches = [images(1 + n % 5, seed=n) for n in range(24)]
    expected = [session(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for got, wanted in zip(pool.map(session, batches), expected, strict=True):
            for name in wanted:
                np.testing.assert_allclose(got[name], wanted[name], atol=1e-5)


def test_says_what_it_runs_on(small: SmallOnnx, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mae"):
        session = EncoderSession(small.encoder, "cpu", threads=1, spinning=False)
    assert session.provider == CPU
    assert CPU in caplog.text


def test_a_failure_names_the_batch(
    session: EncoderSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Failed to allocate memory\nat line 1")

    monkeypatch.setattr(session, "_session", SimpleNamespace(run=fail))
    with pytest.raises(MaestroError, match=r"batch of 3.*allocate memory; a smaller batch"):
        session(images(3))


# --- files ------------------------------------------------------------------------------------


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        EncoderSession(tmp_path / "none.onnx", "cpu")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no protocol buffer")
    with pytest.raises(CheckpointError, match="not an ONNX file") as caught:
        EncoderSession(damaged, "cpu")
    assert "\n" not in str(caught.value)


def test_a_file_cut_short(small: SmallOnnx, tmp_path: Path) -> None:
    content = small.encoder.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        EncoderSession(tmp_path / "cut.onnx", "cpu")


def test_foreign_graph_is_refused(tmp_path: Path) -> None:
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


def test_our_graph_without_or_with_other_metadata(small: SmallOnnx, tmp_path: Path) -> None:
    model = onnx.load(small.encoder)
    properties = {p.key: p.value for p in model.metadata_props}
    onnx.helper.set_model_props(model, {})
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(CheckpointError, match="metadata lacks"):
        EncoderSession(tmp_path / "bare.onnx", "cpu")
    onnx.helper.set_model_props(model, {**properties, "maestro.format": "99"})
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(CheckpointError, match="format is 99"):
        EncoderSession(tmp_path / "new.onnx", "cpu")


def test_an_opset_of_the_future(small: SmallOnnx, tmp_path: Path) -> None:
    model = onnx.load(small.encoder)
    model.opset_import[0].version = 99
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(CheckpointError, match=r"uses opset 99.*lower export\.opset"):
        EncoderSession(tmp_path / "new.onnx", "cpu")


def test_weights_beside_the_graph(small: SmallOnnx, tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    data = write_with_weights_beside(path)
    session = EncoderSession(path, "cpu")
    expected = EncoderSession(small.encoder, "cpu")(images(2))["cls"]
    np.testing.assert_allclose(session(images(2))["cls"], expected, atol=1e-6)
    first = session.sha256
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    assert EncoderSession(path, "cpu").sha256 != first
    data.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"large\.onnx\.data, the weights .* cut short"):
        EncoderSession(path, "cpu")
    data.unlink()
    with pytest.raises(CheckpointError, match=r"in large\.onnx\.data, which is not beside it"):
        EncoderSession(path, "cpu")


def test_one_file_is_its_sha256(small: SmallOnnx, session: EncoderSession) -> None:
    assert session.sha256 == sha256_of_file(small.encoder)


def test_each_kind_refuses_the_other(small: SmallOnnx) -> None:
    with pytest.raises(CheckpointError, match="an encoder and not a classifier: `mae embed`"):
        ClassifierSession(small.encoder, "cpu")
    with pytest.raises(CheckpointError, match="a classifier and not an encoder: `mae classify`"):
        EncoderSession(small.classifier, "cpu")
    assert isinstance(open_session(small.encoder, "cpu"), EncoderSession)
    opened = open_session(small.classifier, "cpu", threads=1)
    assert isinstance(opened, ClassifierSession)
    assert opened(images(1)).shape == (1, len(CLASSES))


def test_metadata_of_another_kind(small: SmallOnnx, tmp_path: Path) -> None:
    model = onnx.load(small.encoder)
    other = onnx.load(small.classifier, load_external_data=False)
    onnx.helper.set_model_props(model, {p.key: p.value for p in other.metadata_props})
    onnx.save(model, tmp_path / "mixed.onnx")
    with pytest.raises(CheckpointError, match="calls itself a classifier and gives cls"):
        open_session(tmp_path / "mixed.onnx", "cpu")


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 1, 16, 16), np.uint8),
        np.zeros((2, 3, 16, 24), np.uint8),
        np.zeros((2, 1, 16, 24), np.float32),
        np.zeros((2, 1, 16, 24), np.uint16),
        np.zeros((1, 16, 24), np.uint8),
    ],
)
def test_ill_shaped_images_are_refused(session: EncoderSession, pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 images \(N, 1, 16, 24\)"):
        session(pixels)


# --- devices ----------------------------------------------------------------------------------


@without_gpu
@pytest.mark.parametrize("asked", [{}, {"tensorrt": True}, {"cuda_graph": True}])
def test_cuda_without_a_gpu_is_an_error(small: SmallOnnx, asked: dict[str, bool]) -> None:
    with pytest.raises(ParamsError, match="shows no GPU"):
        EncoderSession(small.encoder, "cuda", **asked)
    if asked:
        with pytest.raises(ParamsError, match="shows no GPU"):
            EncoderSession(small.encoder, "auto", **asked)
        with pytest.raises(ParamsError, match="the device is cpu"):
            EncoderSession(small.encoder, "cpu", **asked)


@without_gpu
def test_a_missed_gpu_is_never_silent(
    small: SmallOnnx, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the driver shows a GPU and onnxruntime cannot load what it needs."""
    monkeypatch.setattr(runtime, "gpus", lambda: 1)
    with pytest.raises(ParamsError, match="cannot use CUDAExecutionProvider"):
        EncoderSession(small.encoder, "cuda")
    session = EncoderSession(small.encoder, "auto")
    assert session.provider == CPU
    assert "cannot use CUDAExecutionProvider" in caplog.text
    assert "running on CPUExecutionProvider" in caplog.text
    assert session(images(1))["cls"].shape == (1, session.dim)


def test_providers_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded = []
    fake = SimpleNamespace(preload_dlls=lambda: loaded.append(True))
    monkeypatch.setattr(runtime, "gpus", lambda: 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    both = runtime._providers(fake, Settings("cuda", tensorrt=True, cuda_graph=True))
    assert [one if isinstance(one, str) else one[0] for one in both] == [TENSORRT, CUDA, CPU]
    assert both[1][1]["enable_cuda_graph"] == 1
    assert both[1][1]["use_tf32"] == 0
    assert Path(both[0][1]["trt_engine_cache_path"]).is_dir()
    (cuda, cpu) = runtime._providers(fake, Settings("auto"))
    assert (cuda[0], cpu) == (CUDA, CPU)
    assert cuda[1]["enable_cuda_graph"] == 0
    assert len(loaded) == 2
    assert runtime._providers(fake, Settings("cpu")) == [CPU]


# --- bound buffers, on the CPU as on a GPU ----------------------------------------------------


def test_bound_runs_equal_plain_ones(small: SmallOnnx) -> None:
    opened = plain(small.encoder)
    bound = BoundRunner(opened, "cpu")
    kept = []
    for seed, count in enumerate([3, 1, 3, 7, 3]):
        for outputs in (("cls",), ("mean", "patches")):
            pixels = images(count, seed)
            got = bound("images", pixels, outputs)
            expected = opened.run(list(outputs), {"images": pixels})
            for name, value in zip(outputs, expected, strict=True):
                np.testing.assert_allclose(got[name], value, atol=1e-6)
            kept.append((got, dict(zip(outputs, expected, strict=True))))
    for got, expected in kept:  # none was overwritten by a later run
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, atol=1e-6)


def test_bound_buffers_are_bounded_and_shared_by_threads(small: SmallOnnx) -> None:
    opened = plain(small.encoder)
    bound = BoundRunner(opened, "cpu")
    batches = [images(1 + n % (_KEPT + 4), seed=n) for n in range(2 * _KEPT + 8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pixels: bound("images", pixels, ("cls",)), batches))
    for pixels, got in zip(batches, found, strict=True):
        (expected,) = opened.run(["cls"], {"images": pixels})
        np.testing.assert_allclose(got["cls"], expected, atol=1e-5)
    assert len(bound._kept) == _KEPT
