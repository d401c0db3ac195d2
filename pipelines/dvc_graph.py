"""The stages of dvc.yaml and what each needs, read from DVC: no stage is named anywhere else."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae.errors import MaestroError


@dataclass(frozen=True)
class StageNode:
    """A stage as `dvc repro` names it, such as 'shard@images', the stages it needs, what it makes.

    Paths count from the root of the project. metrics, plots: those among `outs`.
    """

    name: str
    needs: tuple[str, ...]
    outs: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    plots: tuple[str, ...] = ()


def read_graph(root: Path) -> list[StageNode]:
    """Return every stage that runs a command, each after all it needs, else as in dvc.yaml.

    Raises MaestroError when `root` is no DVC project or dvc.yaml is at fault.
    """
    import networkx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            stages = [stage for stage in repo.index.stages if stage.cmd]
            needed = repo.index.graph.subgraph(stages)
            order = networkx.lexicographical_topological_sort(needed.reverse(), stages.index)
            root_dir = Path(repo.root_dir)
            name = {stage: _address(stage, root_dir) for stage in stages}
            return [
                StageNode(
                    name[stage],
                    tuple(name[other] for other in stages if needed.has_edge(stage, other)),
                    outs=_paths(stage.outs, root_dir),
                    metrics=_paths((out for out in stage.outs if out.metric), root_dir),
                    plots=_paths((out for out in stage.outs if out.plot), root_dir),
                )
                for stage in order
            ]
    except DvcException as error:
        raise MaestroError(f"the pipeline of {root.resolve()} cannot be read: {error}") from None


def _address(stage: Any, root: Path) -> str:
    """Return the name of `stage` for a dvc that runs in `root`; its own is for where we run."""
    file = Path(stage.path).relative_to(root).as_posix()
    if file == "dvc.yaml":
        return stage.name
    return f"{file}:{stage.name}" if getattr(stage, "name", None) else file


def _paths(outs: Iterable[Any], root: Path) -> tuple[str, ...]:
    return tuple(Path(out.fs_path).relative_to(root).as_posix() for out in outs)


def with_upstream(graph: list[StageNode], targets: Iterable[str]) -> list[StageNode]:
    """Return the part of `graph` that `targets` need, themselves included, in the same order."""
    nodes = {node.name: node for node in graph}
    wanted: set[str] = set()
    queue = list(targets)
    while queue:
        name = queue.pop()
        if name not in nodes:
            raise MaestroError(f"there is no stage '{name}'; dvc.yaml has: {', '.join(nodes)}")
        if name not in wanted:
            wanted.add(name)
            queue.extend(nodes[name].needs)
    return [node for node in graph if node.name in wanted]
