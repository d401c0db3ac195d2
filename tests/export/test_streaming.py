"""What is streamed is the same however often it was stopped, and memory stays flat."""

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mae.data.records import Record, Rejected
from mae.errors import MaestroError
from mae.export import streaming
from mae.export.embed import embed_images
from mae.export.images import View
from mae.export.listing import Item, Listing
from mae.export.parts import Mark
from mae.export.session import EncoderSession
from mae.export.streaming import Streamed, Work, stream_images
from mae.export.tables import embedding_schema
from tests.export.small_onnx import small_onnx
from tests.small_project import ROOT

VIEW = View(channels=1, bit_depth=8, height=4, width=4, resize=1.0)


class Stopped(Exception):
    """What ends a run in the middle."""


@dataclass(frozen=True)
class Grey:
    """An image of one value; it changes with `version`."""

    value: int
    version: int = 0

    def read(self) -> bytes:
        buffer = io.BytesIO()
        Image.new("L", (4, 4), (self.value * 7 + self.version) % 256).save(buffer, "PNG")
        return buffer.getvalue()

    def stamp(self) -> str:
        return str(self.version)


def listing_of(items: list[Item]) -> Listing:
    def find(key: str) -> Any:
        raise AssertionError(key)

    return Listing(lambda: iter(items), lambda: len(items), find)


def items_of(broken: list[bool], versions: dict[int, int] | None = None) -> list[Item]:
    versions = versions or {}
    return [
        Rejected(f"{n:04d}", "damaged", f"number {n}")
        if wrong
        else Record(f"{n:04d}", Grey(n, versions.get(n, 0)))
        for n, wrong in enumerate(broken)
    ]


class Model:
    """Rows of two numbers: the image's value, and its place in the batch, so that a batch that
    was cut elsewhere shows. Stops after so many batches."""

    def __init__(self, batches: int | None = None) -> None:
        self.left = batches
        self.images = 0

    def __call__(self, pixels: np.ndarray) -> list[pa.Array]:
        if self.left == 0:
            raise Stopped
        self.left = None if self.left is None else self.left - 1
        self.images += len(pixels)
        rows = [[float(image[0, 0, 0]), float(place)] for place, image in enumerate(pixels)]
        values = pa.array(np.array(rows, np.float32).reshape(-1))
        return [pa.FixedSizeListArray.from_arrays(values, 2)]


def stream(
    items: list[Item],
    out: Path,
    model: Callable[[np.ndarray], list[pa.Array]],
    batch: int = 3,
    sha: str = "a",
) -> Streamed:
    schema = embedding_schema(2, {"model_sha256": sha, "feature": "cls"})
    work = Work("test", model, schema, {"model_sha256": sha})
    return stream_images(listing_of(items), VIEW, work, out, batch=batch, workers=2)


def made(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_PART_ROWS", 5)


@settings(max_examples=40, deadline=None)
@given(
    broken=st.lists(st.booleans(), min_size=1, max_size=30).filter(lambda all_: not all(all_)),
    batch=st.integers(1, 7),
    part_rows=st.integers(1, 12),
    most_rejected=st.integers(1, 5),
    stops=st.lists(st.integers(0, 4), max_size=6),
    suffix=st.sampled_from([".parquet", ".npy"]),
)
def test_stopped_anywhere_it_ends_the_same(
    broken: list[bool],
    batch: int,
    part_rows: int,
    most_rejected: int,
    stops: list[int],
    suffix: str,
) -> None:
    items = items_of(broken)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr(streaming, "_PART_ROWS", part_rows)
        patch.setattr(streaming, "_MOST_REJECTED", most_rejected)
        whole, stopped = Path(name, "whole"), Path(name, "stopped")
        once = stream(items, whole / f"e{suffix}", Model(), batch)
        for batches in stops:
            try:
                stream(items, stopped / f"e{suffix}", Model(batches), batch)
            except Stopped:
                continue
        last = stream(items, stopped / f"e{suffix}", Model(), batch)
        assert made(stopped) == made(whole)
        assert (last.images, last.rejected) == (once.images, once.rejected)
        assert once.images == broken.count(False)
        assert once.rejected == broken.count(True)


@pytest.mark.usefixtures("short_parts")
def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    items = items_of([False] * 30)
    with pytest.raises(Stopped):
        stream(items, tmp_path / "e.parquet", Model(6))
    again = Model()
    done = stream(items, tmp_path / "e.parquet", again)
    assert done.resumed >= 12
    assert again.images == 30 - done.resumed


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("change", ["bytes", "gone", "new", "appended"])
def test_images_that_changed_meanwhile(tmp_path: Path, change: str) -> None:
    """What lies before the change is kept, the rest made anew: as if nothing had been."""
    before = items_of([False] * 24)
    after = {
        "bytes": items_of([False] * 24, {7: 1}),
        "gone": [*before[:7], *before[8:]],
        "new": [*before[:7], Record("0006-5", Grey(99)), *before[7:]],
        "appended": [*before, Record("0024", Grey(24))],
    }[change]
    with pytest.raises(Stopped):
        stream(before, tmp_path / "e.parquet", Model(6))
    model = Model()
    done = stream(after, tmp_path / "e.parquet", model)
    assert done.resumed == (6 if change != "appended" else 18)
    assert model.images == len(after) - done.resumed
    stream(after, tmp_path / "whole/e.parquet", Model())
    assert (tmp_path / "e.parquet").read_bytes() == (tmp_path / "whole/e.parquet").read_bytes()


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("change", ["model", "batch"])
def test_another_model_or_batch_starts_anew(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    items = items_of([False] * 24)
    with pytest.raises(Stopped):
        stream(items, tmp_path / "e.parquet", Model(6))
    model = Model()
    other = {"sha": "b"} if change == "model" else {"batch": 4}
    with caplog.at_level("INFO", logger="mae"):
        done = stream(items, tmp_path / "e.parquet", model, **other)  # type: ignore[arg-type]
    assert (done.resumed, model.images) == (0, 24)
    assert ("model_sha256" if change == "model" else "batch") in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("damage", ["cut", "other", "gone", "identity"])
def test_damaged_parts_are_done_again(tmp_path: Path, damage: str) -> None:
    items = items_of([False] * 24)
    out = tmp_path / "e.parquet"
    with pytest.raises(Stopped):
        stream(items, out, Model(6))
    folder = tmp_path / "e.parquet.partial"
    second = folder / "part-000001.arrow"
    if damage == "cut":
        second.write_bytes(second.read_bytes()[:200])
    elif damage == "other":
        table = pa.table({"x": [1]})
        with pa.ipc.new_file(str(second), table.schema) as file:
            file.write_table(table)
    elif damage == "gone":
        second.unlink()
    else:
        (folder / "identity.json").write_text("{")
    done = stream(items, out, Model())
    assert done.resumed == (0 if damage == "identity" else 6)
    stream(items, tmp_path / "whole/e.parquet", Model())
    assert out.read_bytes() == (tmp_path / "whole/e.parquet").read_bytes()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    items = items_of([False] * 4)
    out = tmp_path / "e.parquet"

    class Nested(Model):
        def __call__(self, pixels: np.ndarray) -> list[pa.Array]:
            with pytest.raises(MaestroError, match="another process is writing"):
                stream(items, out, Model())
            return super().__call__(pixels)

    assert stream(items, out, Nested()).images == 4


def test_a_mark_tells_listings_apart() -> None:
    assert Mark().after("a", "1") == Mark().after("a", "1")
    marks = [
        Mark().after("a", "1"),
        Mark().after("a", "2"),
        Mark().after("b", "1"),
        Mark().after("a", "1").after("b", "1"),
        Mark().after("b", "1").after("a", "1"),
    ]
    assert len({mark.digest for mark in marks}) == len(marks)


# --- processes --------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from mae.export import streaming
from mae.export.embed import embed_images
from mae.export.session import EncoderSession

model, images, out, batches = sys.argv[1:]
streaming._PART_ROWS = 8

class Dying(EncoderSession):
    left = int(batches)
    def __call__(self, *arguments):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return super().__call__(*arguments)

embed_images(Dying(model, "cpu", threads=1), images, Path(out), feature="cls", batch=4, workers=2)
"""


def test_killed_and_started_again(tmp_path: Path) -> None:
    """40 images in batches of 4: killed twice with SIGKILL, then left alone."""
    small = small_onnx()

    def embed(out: Path, batches: int) -> int:
        command = [sys.executable, "-c", KILLED]
        command += [str(small.encoder), str(small.source), str(out), str(batches)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    session = EncoderSession(small.encoder, "cpu", threads=1)
    whole_file = whole / "e.parquet"
    embed_images(session, small.source, whole_file, feature="cls", batch=4, workers=2)
    out = stopped / "e.parquet"
    assert embed(out, 5) == -signal.SIGKILL
    parts = sorted(path.name for path in (stopped / "e.parquet.partial").glob("part-*"))
    assert parts
    assert not out.exists()
    assert embed(out, 3) == -signal.SIGKILL
    assert embed(out, 99) == 0
    assert made(stopped) == made(whole)


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from mae.data.records import Inline, Record, Rejected
from mae.export.embed import embed_images
from mae.export.images import View
from mae.export.listing import Listing
from mae.export.streaming import Work, stream_images
from mae.export.tables import embedding_schema

count, out = int(sys.argv[1]), Path(sys.argv[2])
pixel = b"P5 4 4 255 " + bytes(range(16))
DIM = 256

def items():
    for n in range(count):
        if n % 4 == 3:
            yield Rejected(f"{n:09d}", "damaged", "a detail that takes some room " * 4)
        else:
            yield Record(f"{n:09d}", Inline(pixel + bytes(200)))

def columns(pixels):
    values = pa.array(np.full(len(pixels) * DIM, 0.5, np.float32))
    return [pa.FixedSizeListArray.from_arrays(values, DIM)]

schema = embedding_schema(DIM, {})
work = Work("memory", columns, schema, {})
view = View(channels=1, bit_depth=8, height=4, width=4, resize=1.0)
listing = Listing(items, lambda: count, lambda key: None)
done = stream_images(listing, view, work, out, batch=64, workers=2)
assert done.images + done.rejected == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """Of 60,000 images 45,000 have vectors of 1 kB; held, they alone would take 46 MB."""
    peaks = []
    for count in (12_000, 72_000):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(count), str(tmp_path / f"{count}.parquet")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 25, peaks
