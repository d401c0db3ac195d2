"""Models by the name of their version: `champion`, `encoder#prod`, `encoder@v0.2.0`.

`mae` looks sources of models up among the entry points "maestro.models" and so knows nothing of
git or DVC. The project is `MAESTRO_ROOT`, or the nearest folder above that holds dvc.yaml.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mae.errors import MaestroError
from pipelines.registry import named

CHAMPION = "encoder#prod"
_NAME = re.compile(r"[A-Za-z0-9][\w/-]*(@v\d[\w.+-]*|#[A-Za-z0-9][\w/-]*)")


@dataclass(frozen=True)
class RegistrySource:
    """A file of whichever version `name` means now."""

    name: str
    file: str
    root: Path

    def current(self) -> str:
        """Return the version that is meant now, as in `encoder@v0.2.0`: one call of git."""
        return named(self.root, CHAMPION if self.name == "champion" else self.name).name

    def fetch(self, version: str) -> Path:
        """Return the file of a version, on this machine. Raises MaestroError where it has none."""
        from pipelines.fetching import fetch

        folder = fetch(self.root, named(self.root, version))
        if found := next(folder.glob(f"*/{self.file}"), None):
            return found
        held = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise MaestroError(
            f"{version} has no {self.file}: its commit holds {held or 'no folder'}; run the "
            "pipeline's export and promote what it makes"
        )


@dataclass(frozen=True)
class Registry:
    """known: examples of the names it answers to, for messages about those that nobody knows."""

    known: str = "champion, encoder#prod, encoder@v0.2.0"

    def __call__(self, name: str, file: str = "encoder.onnx") -> RegistrySource | None:
        """Return the source of `file` by its name, None where this is no name of the registry.

        Raises MaestroError where it is one and there is no project to look in.
        """
        if name != "champion" and not _NAME.fullmatch(name):
            return None
        return RegistrySource(name, file, _project(name))


registry_source = Registry()


def _project(name: str) -> Path:
    if given := os.environ.get("MAESTRO_ROOT"):
        root = Path(given)
        if not (root / "dvc.yaml").is_file():
            raise MaestroError(f"MAESTRO_ROOT is {given}, where there is no dvc.yaml")
        return root
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise MaestroError(
        f"'{name}' is a model of a project's registry, and neither {here} nor a folder above it "
        "holds dvc.yaml: go there, or set MAESTRO_ROOT"
    )
