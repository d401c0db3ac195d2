"""What a run shows on a Prefect server: tables of metrics, pictures, progress, a link, a summary.

Showing is a courtesy: whatever goes wrong with it is logged, and fails no stage.
"""

import base64
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.settings import PREFECT_API_URL

from mae.errors import MaestroError
from pipelines.dvc_graph import StageNode
from pipelines.flows.server import why_silent
from pipelines.gate import flat_metrics
from pipelines.outcome import StageRun
from pipelines.repository import file_at

LOG = logging.getLogger(__name__)
PICTURE_BYTES = 400_000  # larger ones are named: the server keeps artifacts in its database
PAGE = "index.html"

Row = dict[str, Any]


def show_stage(root: Path, node: StageNode) -> None:
    """Show what lies there of a stage that came to a good end, in the current task run."""
    with _only_logged(f"results of {node.name}"):
        _demand_server()
        if rows := metric_rows(root, node.metrics):
            create_table_artifact(
                rows, key=artifact_key(node.name, "metrics"), description=f"Metrics of {node.name}"
            )
        if pictures := pictures_of(root, node.plots):
            create_markdown_artifact(
                pictures, key=artifact_key(node.name, "pictures"), description=node.name
            )
        for page in pages_of(root, node.outs):
            create_markdown_artifact(
                f"[{page.name}]({page.as_uri()}) of {node.name}, on the machine that ran it:\n\n"
                f"`{page}`",
                key=artifact_key(node.name, "page"),
                description=f"Page of {node.name}",
            )


def show_summary(runs: Sequence[StageRun]) -> None:
    """Show how each stage ended, in the current flow run."""
    with _only_logged("summary"):
        _demand_server()
        create_table_artifact(summary_rows(runs), key="summary", description="How each stage ended")


def progress_teller(stage: str) -> Callable[[float], None]:
    """Return what shows a share, 0 to 1, as progress of the current task run, from any thread."""
    context = copy_context()
    shown: list[UUID] = []

    def tell(share: float) -> None:
        _demand_server()
        percent = round(100 * share, 1)
        if shown:
            context.run(update_progress_artifact, shown[0], percent)
            return
        key = artifact_key(stage, "progress")
        shown.append(
            context.run(create_progress_artifact, percent, key=key, description=stage)  # type: ignore[arg-type]
        )

    return tell


def artifact_key(stage: str, kind: str) -> str:
    """Return a key as Prefect allows it: lower-case letters, digits, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{stage}-{kind}".lower()).strip("-")


def metric_rows(root: Path, files: Sequence[str]) -> list[Row]:
    """Return a row for each number in the metrics files, with its change since the last commit.

    A file that does not exist is left out.
    """
    rows: list[Row] = []
    for file in files:
        path = root / file
        if not path.exists():
            continue
        before = _numbers(file, _committed(root, file))
        for name, value in _numbers(file, path.read_text(encoding="utf-8")).items():
            row: Row = {"metric": name, "value": value, "last commit": None, "change": None}
            if name in before:
                row |= {"last commit": before[name], "change": value - before[name]}
            rows.append(row)
    return rows


def pictures_of(root: Path, plots: Sequence[str]) -> str:
    """Return Markdown with the PNG files among and below `plots`, in full where they are small."""
    found = [path for plot in plots for path in _below(root / plot) if path.suffix == ".png"]
    return "\n\n".join(_picture(path, root) for path in sorted(found))


def pages_of(root: Path, outs: Sequence[str]) -> list[Path]:
    """Return the pages that start a report: an index.html directly in a folder among `outs`."""
    return [page for out in outs if (page := (root / out / PAGE).resolve()).is_file()]


def summary_rows(runs: Sequence[StageRun]) -> list[Row]:
    return [
        {
            "stage": run.stage,
            "outcome": str(run.outcome),
            "seconds": round(run.seconds, 1),
            "attempts": run.attempts,
            "message": run.message.partition("\n")[0],
        }
        for run in runs
    ]


def _picture(path: Path, root: Path) -> str:
    title = path.relative_to(root).as_posix()
    if path.stat().st_size > PICTURE_BYTES:
        return f"`{title}` ({path.stat().st_size / 1e6:.1f} MB)"
    data = base64.b64encode(path.read_bytes()).decode()
    return f"{title}\n\n![{title}](data:image/png;base64,{data})"


def _below(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _committed(root: Path, file: str) -> str:
    try:
        return file_at(root, "HEAD", file)
    except MaestroError:
        return "{}"


def _numbers(file: str, text: str) -> dict[str, float]:
    return flat_metrics({Path(file).stem: json.loads(text)})


@contextmanager
def _only_logged(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        LOG.warning("the %s could not be shown on the Prefect server: %s", what, error)


def _demand_server() -> None:
    """Raise ConnectionError when the server is gone: Prefect would try again for a minute."""
    url = PREFECT_API_URL.value()
    if url and (fault := why_silent(url)):
        raise ConnectionError(f"{url} does not answer ({fault})")
