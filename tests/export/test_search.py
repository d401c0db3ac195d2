"""An index finds what exact search finds, for the encoder that it was made with and no other."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from mae.data.digits import digit_images
from mae.errors import CheckpointError, DataError, ParamsError
from mae.export.embed import embed_images
from mae.export.images import read_image
from mae.export.listing import list_images
from mae.export.search import Match, SearchIndex, build_index
from mae.export.search_picture import Answer, draw_answers, search_images, write_rows
from mae.export.session import EncoderSession
from mae.export.tables import embedding_schema
from tests.export.small_onnx import SmallOnnx, small_onnx


@pytest.fixture(scope="module")
def small() -> SmallOnnx:
    return small_onnx()


@pytest.fixture(scope="module")
def session(small: SmallOnnx) -> EncoderSession:
    return EncoderSession(small.encoder, "cpu")


@pytest.fixture(scope="module")
def index(
    small: SmallOnnx, session: EncoderSession, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("search")
    table = folder / "e.parquet"
    embed_images(session, small.source, table, feature="mean", batch=16, workers=2)
    assert build_index(table, folder / "index") == 40
    return folder / "index"


def write_table(path: Path, vectors: NDArray[np.float32], **made_by: str) -> Path:
    schema = embedding_schema(vectors.shape[1], made_by)
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    keys = pa.array([f"{n:06d}" for n in range(len(vectors))])
    pq.write_table(pa.table([keys, values], schema=schema), path)
    return path


def exact(gallery: NDArray, queries: NDArray, k: int) -> NDArray:
    """Return the rows (N, k) of the largest cosines, in float64."""
    a, b = (x.astype(np.float64) for x in (queries, gallery))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    return np.argsort(-(a @ b.T), axis=1)[:, :k]


def recall(folder: Path, gallery: NDArray, queries: NDArray, k: int = 10) -> float:
    found = SearchIndex.open(folder).query(queries, k)
    expected = exact(gallery, queries, k)
    hits = [
        len({int(match.key) for match in row} & set(wanted.tolist())) / k
        for row, wanted in zip(found, expected, strict=True)
    ]
    return float(np.mean(hits))


def test_recall_on_features_of_images(session: EncoderSession, tmp_path: Path) -> None:
    view = session.view()
    pixels = np.stack([read_image(one.image.read(), view) for one in islice(digit_images(0), 2000)])
    features = session(pixels, ("cls",))["cls"]
    build_index(write_table(tmp_path / "e.parquet", features), tmp_path / "index")
    assert recall(tmp_path / "index", features, features[::5]) >= 0.95


def test_recall_among_many(tmp_path: Path) -> None:
    """10,000 vectors of 96 numbers in 500 bunches; queries that are none of them."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(500, 96))
    vectors = np.concatenate([centres + 0.5 * draw.normal(size=(500, 96)) for _ in range(21)])
    vectors = vectors.astype(np.float32)
    gallery, queries = vectors[:10_000], vectors[10_000:10_200]
    build_index(write_table(tmp_path / "e.parquet", gallery), tmp_path / "index")
    assert recall(tmp_path / "index", gallery, queries) >= 0.95


def test_says_what_made_it(index: Path, session: EncoderSession) -> None:
    opened = SearchIndex.open(index)
    assert (opened.feature, opened.dim, opened.count) == ("mean", 16, 40)
    assert opened.model_sha256 == session.sha256
    assert opened.data_fingerprint == session.about.training["data_fingerprint"]
    opened.demand_made_by(session)


def test_finds_itself_and_cosines(small: SmallOnnx, session: EncoderSession, index: Path) -> None:
    answers, rejected = search_images(session, SearchIndex.open(index), small.source, 5, 2)
    assert len(answers) == 40
    assert [one.id for one in rejected] == ["dark/text.png"]
    vectors = {
        answer.query.key: session(answer.query.pixels[None], ("mean",))["mean"][0]
        for answer in answers
    }
    for answer in answers:
        assert answer.matches[0].key == answer.query.key
        mine = vectors[answer.query.key]
        similarities = [match.similarity for match in answer.matches]
        assert similarities == sorted(similarities, reverse=True)
        for match in answer.matches:
            other = vectors[match.key]
            cosine = mine @ other / np.linalg.norm(mine) / np.linalg.norm(other)
            assert match.similarity == pytest.approx(cosine, abs=1e-4)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("k", [1, 7, 1000])
def test_as_many_as_there_are(index: Path, count: int, k: int) -> None:
    found = SearchIndex.open(index).query(np.ones((count, 16), np.float32), k)
    assert [len(row) for row in found] == [min(k, 40)] * count
    assert len({match.key for match in found[0]}) == min(k, 40)


def test_queries_that_are_none(index: Path) -> None:
    opened = SearchIndex.open(index)
    assert opened.query(np.empty((0, 16), np.float32), 3) == []
    for shape in ((1, 8), (16,)):
        with pytest.raises(ValueError, match=r"takes vectors \(N, 16\)"):
            opened.query(np.ones(shape, np.float32), 3)


def test_several_threads_may_search(index: Path) -> None:
    opened = SearchIndex.open(index)
    vectors = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    expected = opened.query(vectors, 4)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda vector: opened.query(vector[None], 4)[0], vectors))
    assert [[m.key for m in row] for row in found] == [[m.key for m in row] for row in expected]


# --- files ------------------------------------------------------------------------------------


@pytest.fixture
def copied(index: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    for file in index.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    SearchIndex.open(folder)
    return folder


@pytest.mark.parametrize("name", ["index.usearch", "keys.parquet", "index.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "empty"])
def test_damaged_files(copied: Path, name: str, damage: str) -> None:
    path = copied / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 0x80
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    with pytest.raises(DataError, match=r"build it again|writes one") as caught:
        SearchIndex.open(copied)
    if damage == "gone":
        assert name in str(caught.value)


def test_other_versions_and_no_index(copied: Path, tmp_path: Path) -> None:
    about = json.loads((copied / "index.json").read_text())
    (copied / "index.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(DataError, match="not of format 1: build the index again"):
        SearchIndex.open(copied)
    (copied / "index.json").write_text("[]")
    with pytest.raises(DataError, match="damaged"):
        SearchIndex.open(copied)
    (tmp_path / "file").write_text("")
    for nothing in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(DataError, match=r"is no index.*`mae search build`"):
            SearchIndex.open(nothing)


def test_another_encoder_is_refused(small: SmallOnnx, index: Path, tmp_path: Path) -> None:
    opened = SearchIndex.open(index)
    model = onnx.load(small.encoder)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match=r"built with another encoder.*embed and build again"):
        opened.demand_made_by(EncoderSession(tmp_path / "other.onnx", "cpu"))
    write_table(tmp_path / "wide.parquet", np.ones((3, 8), np.float32), model_sha256="x")
    build_index(tmp_path / "wide.parquet", tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"vectors of 8 numbers and .* makes 16"):
        SearchIndex.open(tmp_path / "wide").demand_made_by(EncoderSession(small.encoder, "cpu"))


def test_tables_that_cannot_be_indexed(tmp_path: Path) -> None:
    out = tmp_path / "index"
    with pytest.raises(DataError, match=r"does not exist: `mae embed`"):
        build_index(tmp_path / "none.parquet", out)
    with pytest.raises(ParamsError, match=r"embed to a \.parquet"):
        build_index(tmp_path / "e.npy", out)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="no Parquet file"):
        build_index(tmp_path / "text.parquet", out)
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "foreign.parquet")
    with pytest.raises(CheckpointError, match="not written by `mae embed`"):
        build_index(tmp_path / "foreign.parquet", out)
    vectors = np.ones((5, 4), np.float32)
    vectors[3, 1] = np.nan
    write_table(tmp_path / "nan.parquet", vectors)
    with pytest.raises(DataError, match="000003 holds values that are no numbers"):
        build_index(tmp_path / "nan.parquet", out)
    assert not out.exists()


def test_never_replaces_what_is_no_index(tmp_path: Path) -> None:
    table = write_table(tmp_path / "e.parquet", np.eye(4, dtype=np.float32))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_text("mine")
    with pytest.raises(ParamsError, match="other files than an index"):
        build_index(table, tmp_path / "photos")
    with pytest.raises(ParamsError, match="is a file"):
        build_index(table, table)
    assert (tmp_path / "photos/a.jpg").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    build_index(table, tmp_path / "empty")
    opened = SearchIndex.open(tmp_path / "empty")
    build_index(
        write_table(tmp_path / "e.parquet", np.eye(6, dtype=np.float32)), tmp_path / "empty"
    )
    assert SearchIndex.open(tmp_path / "empty").count == 6
    # What was open goes on with what it had.
    assert len(opened.query(np.eye(4, dtype=np.float32), 4)[0]) == 4


# --- for people -------------------------------------------------------------------------------


def test_rows_and_picture(
    small: SmallOnnx, session: EncoderSession, index: Path, tmp_path: Path
) -> None:
    answers, _ = search_images(session, SearchIndex.open(index), small.source / "dark", 3, 2)
    write_rows(answers, tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(answers)
    assert rows[0]["query"] == answers[0].query.key
    assert rows[0]["rank"] == "1"
    assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-4)
    view = session.view()
    for gallery in (small.source, small.shards):
        draw_answers(answers[:2], list_images(gallery, view), view, tmp_path / "found.png")
        few = Image.open(tmp_path / "found.png").size
        draw_answers(answers[:4], list_images(gallery, view), view, tmp_path / "found.png")
        more = Image.open(tmp_path / "found.png").size
        assert more[0] == few[0] > 300
        assert more[1] > few[1] > 100


@pytest.mark.parametrize("gallery", ["source", "shards"])
def test_a_picture_needs_the_images(
    small: SmallOnnx, session: EncoderSession, index: Path, tmp_path: Path, gallery: str
) -> None:
    (answer, *_), _ = search_images(session, SearchIndex.open(index), small.source, 1, 2)
    lost = Answer(answer.query, [Match("dark/gone.png", 0.5)])
    view = session.view()
    with pytest.raises(DataError, match=r"--images does not hold dark/gone\.png"):
        where = list_images(getattr(small, gallery), view)
        draw_answers([lost], where, view, tmp_path / "found.png")
    assert not (tmp_path / "found.png").exists()


def test_nothing_to_search_with(small: SmallOnnx, session: EncoderSession, index: Path) -> None:
    with pytest.raises(DataError, match=r"text\.png cannot be used"):
        search_images(session, SearchIndex.open(index), small.source / "dark/text.png", 3, 1)
