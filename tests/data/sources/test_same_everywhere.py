"""The same images through every kind of source: the same ids, bytes, labels and splits."""

import gzip
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mae.data.records import Location, Record, Source
from mae.data.sources.folder import open_folder
from mae.data.sources.huggingface import open_huggingface
from mae.data.sources.opening import open_tree
from mae.data.sources.table import open_table
from mae.data.sources.webdataset import open_webdataset
from tests.data.sources.listing import HOW, images, place, records, tarred, zipped

PICTURES = images(
    *(f"train/{label}/{number}.png" for label in ("cat", "dog") for number in range(4)),
    *(f"{split}/{label}/9.png" for label in ("cat", "dog") for split in ("val", "test")),
)


def stem(name: str) -> str:
    return name.removesuffix(".png")


def parts(name: str) -> tuple[str, str]:
    split, label, _ = name.split("/")
    return split, label


def at_folder(root: Path) -> Source:
    return open_folder(open_tree(str(place(root, PICTURES)), HOW))


def at_zip(root: Path) -> Source:
    return open_folder(open_tree(str(place(root, {"a.zip": zipped(PICTURES)}) / "a.zip"), HOW))


def at_tar(root: Path) -> Source:
    return open_folder(open_tree(str(place(root, {"a.tar": tarred(PICTURES)}) / "a.tar"), HOW))


def at_tar_gz(root: Path) -> Source:
    packed = gzip.compress(tarred(PICTURES))
    return open_folder(open_tree(str(place(root, {"a.tar.gz": packed}) / "a.tar.gz"), HOW))


def at_file_url(root: Path) -> Source:
    return open_folder(open_tree(f"file://{place(root, PICTURES)}", HOW))


def at_webdataset(root: Path) -> Source:
    for split in ("train", "val", "test"):
        members: dict[str, bytes] = {}
        for name, data in PICTURES.items():
            if name.startswith(f"{split}/"):
                members[name] = data
                members[f"{stem(name)}.cls"] = parts(name)[1].encode()
        place(root, {f"{split}-000.tar": tarred(members)})
    return open_webdataset(f"{root}/{{train,val,test}}-000.tar", HOW)


def at_csv(root: Path) -> Source:
    place(root, PICTURES)
    lines = [",".join((name, *parts(name))) for name in reversed(PICTURES)]
    (root / "list.csv").write_text("\n".join(["path,split,label", *lines]) + "\n")
    return open_table(str(root / "list.csv"), HOW)


def at_parquet_of_bytes(root: Path) -> Source:
    root.mkdir(exist_ok=True)
    columns = {
        "image": [{"bytes": data, "path": None} for data in PICTURES.values()],
        "id": list(PICTURES),
        "split": [parts(name)[0] for name in PICTURES],
        "label": [parts(name)[1] for name in PICTURES],
    }
    pq.write_table(pa.table(columns), root / "list.parquet", row_group_size=5)
    return open_table(str(root / "list.parquet"), HOW)


def at_huggingface(root: Path) -> Source:
    splits = {}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "name": datasets.Value("string"),
        }
    )
    for split in ("train", "val", "test"):
        names = [name for name in PICTURES if name.startswith(f"{split}/")]
        columns = {
            "image": [{"bytes": PICTURES[name], "path": None} for name in names],
            "label": [parts(name)[1] for name in names],
            "name": names,
        }
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(splits).save_to_disk(root / "saved")
    return open_huggingface(str(root / "saved"), HOW)


def at_memory(root: Path) -> Source:
    for name, data in PICTURES.items():
        fsspec.filesystem("memory").pipe(f"/{root.name}/{name}", data)
    return open_folder(open_tree(f"memory://{root.name}", HOW))


def at_memory_zip(root: Path) -> Source:
    fsspec.filesystem("memory").pipe(f"/{root.name}/a.zip", zipped(PICTURES))
    return open_folder(open_tree(f"memory://{root.name}/a.zip", HOW))


def at_memory_tars(root: Path) -> Source:
    for split in ("train", "val", "test"):
        part = {
            name.removeprefix(f"{split}/"): data
            for name, data in PICTURES.items()
            if name.startswith(f"{split}/")
        }
        fsspec.filesystem("memory").pipe(f"/{root.name}/{split}.tar", tarred(part))
    return open_folder(open_tree(f"memory://{root.name}", HOW))


LOCAL: dict[str, Callable[[Path], Source]] = {
    "folder": at_folder,
    "zip": at_zip,
    "tar": at_tar,
    "tar.gz": at_tar_gz,
    "file url": at_file_url,
    "webdataset": at_webdataset,
    "csv": at_csv,
    "parquet": at_parquet_of_bytes,
    "huggingface": at_huggingface,
}
ANYWHERE = {
    **LOCAL,
    "memory": at_memory,
    "memory zip": at_memory_zip,
    "memory tars": at_memory_tars,
}


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()


def name_of(record: Record, kind: str) -> str:
    """Return the id without what a kind of source puts before or leaves out."""
    if kind == "webdataset":
        return f"{record.id.split('/', 1)[1]}.png"
    return record.columns["name"] if kind == "huggingface" else record.id


@pytest.mark.parametrize("kind", ANYWHERE)
def test_same_images_through_every_kind(tmp_path: Path, kind: str) -> None:
    source = ANYWHERE[kind](tmp_path / "here")
    found = records(source)
    assert len({record.id for record in found}) == len(PICTURES)
    assert {name_of(one, kind): (one.image.read(), one.label, one.split) for one in found} == {
        name: (data, parts(name)[1], parts(name)[0]) for name, data in PICTURES.items()
    }
    assert source.carve == ()
    assert source.classes in (("cat", "dog"), None)
    assert len({record.image.stamp() for record in found}) == len(found)


def read_pickled(location: bytes) -> bytes:
    return pickle.loads(location).read()


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two processes that share nothing with this one."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.mark.parametrize("kind", LOCAL)
def test_locations_are_read_by_other_processes_and_threads(
    tmp_path: Path, kind: str, pool: ProcessPoolExecutor
) -> None:
    found = records(LOCAL[kind](tmp_path / "here"))
    expected = [PICTURES[name_of(record, kind)] for record in found]
    pickled = [pickle.dumps(record.image) for record in found]
    assert all(len(one) < 2000 for one in pickled)
    assert list(pool.map(read_pickled, pickled)) == expected
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda one: one.image.read(), found * 20)) == expected * 20


def test_records_can_be_pickled_with_all_that_is_known(tmp_path: Path) -> None:
    for number, make in enumerate(LOCAL.values()):
        found = records(make(tmp_path / str(number)))
        assert pickle.loads(pickle.dumps(found)) == found


def stamp_and_content(location: Location) -> tuple[str, bytes]:
    return location.stamp(), location.read()


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "file url", "csv", "memory"])
def test_a_stamp_changes_with_the_bytes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {one.id: stamp_and_content(one.image) for one in records(ANYWHERE[kind](tmp_path))}
    name = "train/cat/0.png"
    changed = bytearray(PICTURES[name])
    changed[-1] ^= 1
    monkeypatch.setitem(PICTURES, name, bytes(changed))
    after = {one.id: stamp_and_content(one.image) for one in records(ANYWHERE[kind](tmp_path))}
    assert before.keys() == after.keys()
    assert after[name][1] == bytes(changed)
    for key in before:
        assert (before[key][0] == after[key][0]) <= (before[key][1] == after[key][1]), key


def test_an_archive_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    """A process that lives on must never read the old archive by a new one's offsets."""
    for content in (b"first", b"second, longer"):
        place(tmp_path, {"new.tar": tarred({"pad.txt": content * 500, "a.png": content})})
        (tmp_path / "new.tar").replace(tmp_path / "a.tar")
        (record,) = records(open_folder(open_tree(str(tmp_path / "a.tar"), HOW)))
        assert record.image.read() == content
