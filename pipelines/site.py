"""Where a retraining takes place: the worktree, brought up to date with what is committed."""

import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml

from mae.errors import ParamsError
from mae.files import replacing_file
from mae.params import Params, read_params
from pipelines.children import run_module
from pipelines.fetching import fetch
from pipelines.registry import Version, champion, content
from pipelines.repository import file_at, git
from pipelines.worktree import (
    HOME,
    PARAMS,
    commit_of_project,
    link_sources,
    prepare,
    tracked_by_dvc,
)

Name = Literal["Promoted", "Rejected", "NothingNew", "Waiting", "Skipped"]


@dataclass(frozen=True)
class Ending:
    """How a retraining that went well ended, and why."""

    name: Name
    message: str


@dataclass(frozen=True)
class Site:
    """Where a retraining takes place. main: the person's checkout; head: its commit; tree: the
    project in the worktree; params: its params.yaml; say: takes a line for people."""

    main: Path
    head: str
    tree: Path
    params: Params
    say: Callable[[str], None]
    stop: threading.Event

    @property
    def home(self) -> Path:
        return self.main / HOME

    def program(self, module: str, *arguments: str) -> str:
        """Run `python -m module arguments` in the worktree to its end."""
        return run_module(module, *arguments, folder=self.tree, on_line=self.say, stop=self.stop)

    def champion(self) -> Version | None:
        return champion(self.main, self.params.retrain.artifact, self.params.retrain.stage)


def committed_params(main: Path) -> Params:
    """Return params.yaml as HEAD holds it: what somebody is editing is not used."""
    commit_of_project(main)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PARAMS
        copy.write_text(file_at(main, "HEAD", PARAMS), encoding="utf-8")
        try:
            return read_params(copy)
        except ParamsError as error:
            raise ParamsError(f"as committed, {str(error).replace(str(copy), PARAMS)}") from None


def open_site(main: Path, say: Callable[[str], None], stop: threading.Event) -> Site:
    """Bring the worktree up to date with what is committed, and return it ready to work in."""
    head, wanted = commit_of_project(main), committed_params(main)
    tree = prepare(main, wanted.retrain.publish)
    holder = champion(main, wanted.retrain.artifact, wanted.retrain.stage)
    site = Site(main, head, tree, wanted, say, stop)
    if wanted.retrain.start_from == "champion" and holder is not None:
        _start_from(site, holder)
    if git(tree, "status", "--porcelain", "--", PARAMS).strip():
        git(tree, "commit", "--quiet", "--message", _about(holder), "--", PARAMS, hooks=False)
    site = replace(site, params=read_params(tree / PARAMS))
    link_sources(main, tree, site.params)
    for file in tracked_by_dvc(tree, site.params):
        site.program("dvc", "checkout", "--quiet", file)
    return site


def _about(holder: Version | None) -> str:
    return f"Parameters of the next retraining (champion: {holder.name if holder else 'none'})"


def _start_from(site: Site, holder: Version) -> None:
    """Let pretraining begin with the champion's weights, at a path that `registry fetch` makes
    true in every checkout."""
    folder = fetch(site.tree, holder) / folder_of(site, holder)
    path = site.tree / PARAMS
    text = with_value(
        path.read_text(encoding="utf-8"),
        ("pretrain", "start_from"),
        folder.relative_to(site.tree).as_posix(),
    )
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def folder_of(site: Site, version: Version) -> str:
    """Return the name that the artifact has among those of a fetched version."""
    return Path(content(site.main, version.artifact, version.commit).path).name


def with_value(text: str, keys: tuple[str, ...], value: str) -> str:
    """Return YAML text with one scalar replaced, and all else, comments too, as it is."""
    node: yaml.Node | None = yaml.compose(text, yaml.SafeLoader)
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((one for name, one in pairs if name.value == key), None)
    if node is None:
        raise ParamsError(f"{PARAMS} has no {'.'.join(keys)}")
    written = yaml.safe_dump(value, default_style='"', width=1000).strip()
    return text[: node.start_mark.index] + written + text[node.end_mark.index :]
