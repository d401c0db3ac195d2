"""Images become a table of the vectors that evaluation sees, wherever they lie."""

import json
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mae.data.loading.loader import EvalLoader
from mae.data.reader import ShardReader
from mae.errors import CheckpointError, DataError, MaestroError, ParamsError
from mae.export.embed import embed_images
from mae.export.onnx_export import PixelEncoder
from mae.export.session import EncoderSession
from mae.export.streaming import Streamed
from mae.model.artifact import load_encoder
from tests.export.small_onnx import SmallOnnx, small_onnx, write_resized


@pytest.fixture(scope="module")
def small() -> SmallOnnx:
    return small_onnx()


@pytest.fixture(scope="module")
def session(small: SmallOnnx) -> EncoderSession:
    return EncoderSession(small.encoder, "cpu")


def run(
    session: EncoderSession, images: Path, out: Path, feature="mean", batch=7, split=None
) -> Streamed:
    return embed_images(session, images, out, feature=feature, batch=batch, workers=2, split=split)


def read(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    return dict(zip(table["key"].to_pylist(), vectors, strict=True))


def test_equals_torch_through_the_evaluation_loader(
    small: SmallOnnx, session: EncoderSession, tmp_path: Path
) -> None:
    done = run(session, small.source, tmp_path / "e.parquet", "cls")
    got = read(tmp_path / "e.parquet")
    artifact = load_encoder(small.root / "artifacts/pretrain")
    model = PixelEncoder(artifact.encoder, artifact.statistics)
    compared = 0
    for split in ("train", "val", "test"):
        reader = ShardReader(small.shards, split)
        loader = EvalLoader(
            reader, height=16, width=24, resize=1.0, batch=64, workers=1, cache_mb=0
        )
        images = torch.cat([batch.images for batch in loader])
        with torch.no_grad():
            expected = model(images).cls.numpy()
        for key, vector in zip(reader.keys, expected, strict=True):
            np.testing.assert_allclose(got[key], vector, atol=2e-5)
            compared += 1
    assert compared == done.images == len(got) == 40
    assert 0 < done.busy <= 1
    assert done.per_second > 0


def test_broken_images_are_listed_and_left_out(
    small: SmallOnnx, session: EncoderSession, tmp_path: Path
) -> None:
    out = tmp_path / "e.parquet"
    done = run(session, small.source, out)
    assert (done.images, done.rejected) == (40, 1)
    assert done.rejected_file is not None
    assert "dark/text.png,not_an_image," in done.rejected_file.read_text()
    keys = pq.read_table(out)["key"].to_pylist()
    assert keys == sorted(keys)
    assert "dark/text.png" not in keys
    # A later run over sound images takes the old list away.
    run(session, small.source / "bright", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet"]


def test_parquet_is_typed_and_says_what_made_it(
    small: SmallOnnx, session: EncoderSession, tmp_path: Path
) -> None:
    run(session, small.source, tmp_path / "e.parquet")
    schema = pq.read_schema(tmp_path / "e.parquet")
    assert str(schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    made_by = json.loads(schema.metadata[b"maestro"])
    assert made_by == {
        "model_sha256": session.sha256,
        "feature": "mean",
        "data_fingerprint": session.about.training["data_fingerprint"],
    }


def test_numpy_holds_the_same_vectors(
    small: SmallOnnx, session: EncoderSession, tmp_path: Path
) -> None:
    """One batch of all, and one image at a time: rounding is all that differs."""
    run(session, small.source, tmp_path / "e.parquet", batch=40)
    run(session, small.source, tmp_path / "e.npy", batch=1)
    table = pq.read_table(tmp_path / "e.parquet")
    vectors = np.load(tmp_path / "e.npy")
    assert vectors.dtype == np.float32
    assert json.loads((tmp_path / "e.keys.json").read_text()) == table["key"].to_pylist()
    np.testing.assert_allclose(vectors, table["embedding"].to_pylist(), atol=2e-5)


def test_archives_and_single_files(
    small: SmallOnnx, session: EncoderSession, tmp_path: Path
) -> None:
    files = sorted(path for path in small.source.rglob("*.png"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in reversed(files):
            archive.write(file, file.relative_to(small.source))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for file in reversed(files):
            archive.add(file, str(file.relative_to(small.source)))
    run(session, small.source, tmp_path / "folder.parquet")
    whole = (tmp_path / "folder.parquet").read_bytes()
    for name in ("a.zip", "a.tar"):
        run(session, tmp_path / name, tmp_path / "e.parquet")
        assert (tmp_path / "e.parquet").read_bytes() == whole
    run(session, small.source / "dark/001.png", tmp_path / "one.parquet")
    one = read(tmp_path / "one.parquet")
    expected = read(tmp_path / "folder.parquet")["dark/001.png"]
    np.testing.assert_allclose(one["001.png"], expected, atol=2e-5)


def test_sharded_data(small: SmallOnnx, session: EncoderSession, tmp_path: Path) -> None:
    run(session, small.source, tmp_path / "folder.parquet")
    run(session, small.shards, tmp_path / "shards.parquet")
    from_folder, from_shards = read(tmp_path / "folder.parquet"), read(tmp_path / "shards.parquet")
    assert list(from_shards) == list(from_folder)
    for key, vector in from_folder.items():
        np.testing.assert_allclose(from_shards[key], vector, atol=2e-5)
    run(session, small.shards, tmp_path / "val.parquet", split="val")
    assert list(read(tmp_path / "val.parquet")) == sorted(ShardReader(small.shards, "val").keys)
    with pytest.raises(DataError, match="no sharded dataset, so it has no split val"):
        run(session, small.source, tmp_path / "e.parquet", split="val")
    with pytest.raises(DataError, match="has no images"):
        run(session, small.root / "data/shards/scenes", tmp_path / "e.parquet")


def test_other_shapes_and_colours_are_made_to_fit(session: EncoderSession, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    for index, shape in enumerate([(5, 9, 3), (300, 200, 3), (16, 24, 4), (40, 400)]):
        pixels = draw.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"größe {index}.png")
    done = run(session, folder, tmp_path / "e.parquet")
    assert done.images == 4
    assert next(iter(read(tmp_path / "e.parquet"))) == "größe 0.png"


def test_a_graph_that_resizes_gets_images_that_it_need_not(tmp_path: Path) -> None:
    """In batches, and as the graph itself resizes whole images one at a time: the same."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    for index, shape in enumerate([(40, 60), (33, 71), (200, 90)]):
        pixels = draw.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    write_resized(tmp_path / "resized.onnx", 1.25)
    session = EncoderSession(tmp_path / "resized.onnx", "cpu")
    run(session, folder, tmp_path / "e.parquet", "mean")
    got = read(tmp_path / "e.parquet")
    for file in sorted(folder.iterdir()):
        alone = session(np.asarray(Image.open(file))[None, None])["mean"][0]
        cosine = alone @ got[file.name] / np.linalg.norm(alone) / np.linalg.norm(got[file.name])
        assert cosine > 0.9999, file.name


# --- what goes wrong --------------------------------------------------------------------------


def test_nothing_usable_leaves_what_was_there(session: EncoderSession, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    out.write_text("older")
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(DataError, match="holds no image files"):
        run(session, folder, out)
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 images.*a\.png"):
        run(session, folder, out)
    with pytest.raises(DataError, match="does not exist"):
        run(session, tmp_path / "nowhere", out)
    assert out.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet", "in"]


def test_files_that_cannot_be_written(
    small: SmallOnnx, session: EncoderSession, tmp_path: Path
) -> None:
    with pytest.raises(ParamsError, match=r"\.parquet or \.npy"):
        run(session, small.source, tmp_path / "e.csv")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ParamsError, match="is a folder"):
        run(session, small.source, tmp_path / "folder.npy")
    (tmp_path / "file").write_text("")
    with pytest.raises(MaestroError, match=r"cannot be written .Not a directory"):
        run(session, small.source, tmp_path / "file/e.parquet")


def test_data_of_another_kind(small: SmallOnnx, tmp_path: Path) -> None:
    """The metadata say three channels; that the graph has one plays no part here."""
    model = onnx.load(small.encoder)
    properties = {p.key: p.value for p in model.metadata_props}
    architecture = json.loads(properties["maestro.architecture"])
    statistics = json.loads(properties["maestro.statistics"])
    properties["maestro.architecture"] = json.dumps(architecture | {"channels": 3})
    statistics |= {"mean": [0.5] * 3, "std": [0.2] * 3}
    properties["maestro.statistics"] = json.dumps(statistics)
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, tmp_path / "colour.onnx")
    session = EncoderSession(tmp_path / "colour.onnx", "cpu")
    with pytest.raises(DataError, match=r"takes 3 channel.*have 1 of 8"):
        run(session, small.shards, tmp_path / "e.parquet")


def test_values_that_are_no_numbers(small: SmallOnnx, tmp_path: Path) -> None:
    model = onnx.load(small.encoder)
    weight = next(w for w in model.graph.initializer if len(w.raw_data) > 1000)
    weight.raw_data = np.full(len(weight.raw_data) // 4, np.nan, np.float32).tobytes()
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(CheckpointError, match="values that are no numbers"):
        run(EncoderSession(tmp_path / "broken.onnx", "cpu"), small.source, tmp_path / "e.parquet")
    assert not (tmp_path / "e.parquet").exists()


def test_a_full_disk_is_told(
    session: EncoderSession, small: SmallOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mae.export import parts

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts, "replacing_file", full)
    with pytest.raises(MaestroError, match=r"No space left on device.*make room"):
        run(session, small.source, tmp_path / "e.parquet")
    assert not (tmp_path / "e.parquet").exists()


def test_no_thread_is_left(small: SmallOnnx, session: EncoderSession, tmp_path: Path) -> None:
    run(session, small.source, tmp_path / "e.parquet")
    for thread in threading.enumerate():
        if thread.name == "mae-count":
            thread.join(60)
    assert not [one.name for one in threading.enumerate() if one.name.startswith("mae-")]
