"""Where a model comes from: a file, or a name that a registry beside this package knows."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

from mae.errors import CheckpointError, MaestroError

ENCODER_FILE, CLASSIFIER_FILE = "encoder.onnx", "classifier.onnx"

GROUP = "maestro.models"


class ModelSource(Protocol):
    """One model, of which a newer version may come at any time.

    name: what it was asked for as.
    """

    @property
    def name(self) -> str: ...

    def current(self) -> str:
        """Return the version that the name stands for now; cheap. Raises MaestroError."""

    def fetch(self, version: str) -> Path:
        """Return this version's .onnx file on this machine. Raises MaestroError."""


Factory = Callable[[str, str], ModelSource | None]


@dataclass(frozen=True)
class FileSource:
    """A file at a fixed place; its version changes when the file is replaced."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def current(self) -> str:
        try:
            status = self.path.stat()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from None
        return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"

    def fetch(self, version: str) -> Path:
        if version != self.current():
            raise CheckpointError(f"{self.path} was replaced meanwhile: ask for it again")
        return self.path


def open_source(name: str, file: str = ENCODER_FILE) -> ModelSource:
    """Return the source of the model `name`: a path, or what a registry calls so.

    A path is an .onnx file, or a folder that holds `file`. Registries are the entry points of
    the group `maestro.models`, each called with (name, file). Raises MaestroError where nothing
    has this name.
    """
    path = Path(name)
    if path.is_dir() and (path / file).is_file():
        return FileSource(path / file)
    if path.is_file():
        return FileSource(path)
    if "/" in name or path.suffix == ".onnx" or path.is_dir():
        lacks = f"the folder {path} holds no {file}" if path.is_dir() else f"{path} does not exist"
        raise CheckpointError(f"{lacks}: run the export stage first")
    known = []
    for point in entry_points(group=GROUP):
        factory = _factory(point)
        if (source := factory(name, file)) is not None:
            return source
        known.append(str(getattr(factory, "known", point.name)))
    names = f"; names that are known here: {', '.join(known)}" if known else ""
    raise CheckpointError(f"there is no file and no registered model {name!r}{names}")


def model_file(name: str, file: str = ENCODER_FILE) -> Path:
    """Return the file of the model `name` as it is now, for whoever needs it once."""
    source = open_source(name, file)
    return source.fetch(source.current())


def _factory(point: EntryPoint) -> Factory:
    try:
        factory: Factory = point.load()
    except ImportError as error:
        raise MaestroError(
            f"the model registry {point.name!r} ({point.value}) cannot be imported: {error}"
        ) from None
    return factory
