"""A folder of images becomes a table of the vectors that evaluation sees."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mae.data.loading.loader import EvalLoader
from mae.data.reader import ShardReader
from mae.errors import DataError, ParamsError
from mae.export.embed import embed_folder
from mae.export.onnx_export import PixelEncoder
from mae.export.session import EncoderSession
from mae.model.artifact import load_encoder
from tests.small_project import Exported


@pytest.fixture(scope="module")
def session(exported: Exported) -> EncoderSession:
    return EncoderSession(exported.onnx, "cpu")


def run(session: EncoderSession, images: Path, out: Path, feature="mean", batch=7):
    return embed_folder(session, images, out, feature=feature, batch=batch, workers=2)


def test_equals_torch_through_the_evaluation_loader(
    exported: Exported, session: EncoderSession, tmp_path: Path
) -> None:
    done = run(session, exported.root / "source", tmp_path / "e.parquet", "cls")
    table = pq.read_table(tmp_path / "e.parquet")
    got = dict(zip(table["key"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    artifact = load_encoder(exported.pretrained)
    model = PixelEncoder(artifact.encoder, artifact.statistics)
    compared = 0
    for split in ("train", "val", "test"):
        reader = ShardReader(exported.shards, split)
        loader = EvalLoader(
            reader, height=16, width=24, resize=1.0, batch=64, workers=1, cache_mb=0
        )
        images = torch.cat([batch.images for batch in loader])
        with torch.no_grad():
            expected = model(images).cls.numpy()
        for key, vector in zip(reader.keys, expected, strict=True):
            np.testing.assert_allclose(got[key], vector, atol=2e-5)
            compared += 1
    assert compared == done.images == table.num_rows == 40


def test_broken_images_are_listed_and_left_out(
    exported: Exported, session: EncoderSession, tmp_path: Path
) -> None:
    out = tmp_path / "e.parquet"
    done = run(session, exported.root / "source", out)
    assert [one.id for one in done.rejected] == ["dark/text.png"]
    assert done.rejected_file is not None
    assert "dark/text.png,not_an_image," in done.rejected_file.read_text()
    keys = pq.read_table(out)["key"].to_pylist()
    assert keys == sorted(keys)
    assert "dark/text.png" not in keys
    # A later run over sound images takes the old list away.
    run(session, exported.root / "source/bright", out)
    assert not done.rejected_file.exists()


def test_parquet_is_typed_and_says_what_made_it(
    exported: Exported, session: EncoderSession, tmp_path: Path
) -> None:
    run(session, exported.root / "source", tmp_path / "e.parquet")
    schema = pq.read_schema(tmp_path / "e.parquet")
    assert str(schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    made_by = json.loads(schema.metadata[b"maestro"])
    assert made_by["feature"] == "mean"
    assert len(made_by["model_sha256"]) == 64


def test_numpy_holds_the_same_vectors(
    exported: Exported, session: EncoderSession, tmp_path: Path
) -> None:
    run(session, exported.root / "source", tmp_path / "e.parquet", batch=40)
    run(session, exported.root / "source", tmp_path / "e.npy", batch=1)
    table = pq.read_table(tmp_path / "e.parquet")
    vectors = np.load(tmp_path / "e.npy")
    assert vectors.dtype == np.float32
    assert json.loads((tmp_path / "e.keys.json").read_text()) == table["key"].to_pylist()
    np.testing.assert_allclose(vectors, table["embedding"].to_pylist(), atol=2e-5)


def test_other_shapes_and_colours_are_made_to_fit(session: EncoderSession, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    for index, shape in enumerate([(5, 9, 3), (300, 200, 3), (16, 24, 4), (40, 400)]):
        pixels = draw.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"größe {index}.png")
    done = run(session, folder, tmp_path / "e.parquet")
    assert done.images == 4
    assert pq.read_table(tmp_path / "e.parquet")["key"].to_pylist()[0] == "größe 0.png"


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


def test_unknown_suffix(exported: Exported, session: EncoderSession, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"\.parquet or \.npy"):
        run(session, exported.root / "source", tmp_path / "e.csv")
