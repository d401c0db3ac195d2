"""A model is a file, or a name that a registry knows; both tell when there is another."""

import os
from pathlib import Path

import pytest

from mae.errors import CheckpointError, MaestroError
from mae.export import models
from mae.export.models import FileSource, model_file, open_source


class Point:
    """An entry point as importlib.metadata gives it."""

    def __init__(self, name: str, factory: object) -> None:
        self.name = self.value = name
        self._factory = factory

    def load(self) -> object:
        if isinstance(self._factory, Exception):
            raise self._factory
        return self._factory


def register(monkeypatch: pytest.MonkeyPatch, *points: Point) -> None:
    def entry_points(*, group: str) -> list[Point]:
        assert group == "maestro.models"
        return list(points)

    monkeypatch.setattr(models, "entry_points", entry_points)


def test_a_file_has_another_version_once_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"one")
    source = open_source(str(path))
    first = source.current()
    assert source.current() == first
    assert source.fetch(first) == path
    new = tmp_path / "new"
    new.write_bytes(b"two")
    os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    new.replace(path)  # as long, and of the same time
    assert source.current() != first
    with pytest.raises(CheckpointError, match="replaced meanwhile"):
        source.fetch(first)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        source.current()


def test_a_folder_stands_for_the_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "classifier.onnx").write_bytes(b"x")
    assert model_file(str(tmp_path), "classifier.onnx") == tmp_path / "classifier.onnx"
    with pytest.raises(CheckpointError, match=r"holds no encoder\.onnx"):
        open_source(str(tmp_path))


def test_registries_are_asked_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def knows_nothing(name: str, file: str) -> None:
        asked.append((name, file))

    def knows_all(name: str, file: str) -> FileSource:
        return FileSource(tmp_path / name / file)

    register(monkeypatch, Point("a", knows_nothing), Point("b", knows_all))
    found = open_source("champion", "classifier.onnx")
    assert found.name == str(tmp_path / "champion/classifier.onnx")
    assert asked == [("champion", "classifier.onnx")]


def test_a_path_comes_before_a_registered_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_be_asked(name: str, file: str) -> None:
        raise AssertionError(name)

    register(monkeypatch, Point("a", must_not_be_asked))
    monkeypatch.chdir(tmp_path)
    Path("champion").write_bytes(b"x")
    assert open_source("champion").name == "champion"
    for name in ("models/champion", "other.onnx"):
        with pytest.raises(CheckpointError, match="does not exist"):
            open_source(name)


def test_an_unknown_name_is_told_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def factory(name: str, file: str) -> None:
        return None

    register(monkeypatch, Point("registry", factory))
    with pytest.raises(CheckpointError, match=r"no registered model .champoin.; .*registry"):
        open_source("champoin")
    factory.known = "champion, encoder#prod"  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="champion, encoder#prod"):
        open_source("champoin")
    register(monkeypatch)
    with pytest.raises(CheckpointError, match=r"no registered model .champoin.$"):
        open_source("champoin")


def test_a_registry_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, Point("registry", ImportError("No module named 'pipelines'")))
    with pytest.raises(MaestroError, match=r"registry.*No module named 'pipelines'"):
        open_source("champion")
