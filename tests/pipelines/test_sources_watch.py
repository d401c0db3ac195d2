"""A look at the sources: what changes it, and what does not."""

import os
from pathlib import Path

import fsspec
import pytest
import yaml

from mae.errors import DataError
from mae.params import Params, parse_params
from pipelines.sources_watch import look

TEMPLATE = Path("params.yaml").read_text()


def params(path: str | None, source: str = "folder", **data: object) -> Params:
    content = yaml.safe_load(TEMPLATE)
    content["data"]["images"] = {"source": source, "path": path}
    content["data"] |= data
    return parse_params(content)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat/one.png").write_bytes(b"one")
    (folder / "cat/dangling.png").symlink_to("nowhere")
    return folder


def test_it_changes_with_files_names_lengths_times_and_parameters(images: Path) -> None:
    wanted = params("images")
    seen = [look(wanted)]

    def changed() -> bool:
        seen.append(look(wanted))
        assert look(wanted) == seen[-1], "and only then"
        return seen[-1] not in seen[:-1]

    (images / "cat/two.png").write_bytes(b"two")
    assert changed()
    (images / "cat/two.png").rename(images / "cat/three.png")
    assert changed()
    (images / "cat/one.png").write_bytes(b"longer")
    assert changed()
    status = (images / "cat/one.png").stat()
    os.utime(images / "cat/one.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert changed()
    (images.parent / "data").mkdir()
    (images.parent / "data/removals.txt").write_text("cat/one.png\n")
    assert changed()
    assert look(params("images", min_side=9)) != seen[-1]
    assert look(params(str(images))) is not None


def test_archives_patterns_and_buckets(images: Path) -> None:
    for number in range(2):
        (images.parent / f"part-{number}.zip").write_bytes(b"zip")
    several = params("part-*.zip")
    before = look(several)
    (images.parent / "part-2.zip").write_bytes(b"zip")
    assert look(several) != before
    assert look(params("part-0.zip")) != look(params("part-1.zip"))

    store = fsspec.filesystem("memory")
    store.pipe("/watched/a.png", b"a")
    bucket = params("memory://watched")
    before = look(bucket)
    assert before == look(bucket)
    store.pipe("/watched/b.png", b"b")
    assert look(bucket) != before


def test_what_cannot_be_seen_is_said_or_left_to_sharding(images: Path) -> None:
    assert look(params("somebody/dataset", source="huggingface")) is None
    with pytest.raises(DataError, match=r"data\.images\.path: there is nothing at elsewhere"):
        look(params("elsewhere"))
    with pytest.raises(DataError, match="cannot be listed"):
        look(params("nosuch://bucket"))
    assert look(params(None, source="digits")) == look(params(None, source="digits"))
