"""Who is better: the challenger that lies in the worktree, or the champion."""

import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mae.errors import Interrupted, MaestroError
from pipelines.comparison import read_result
from pipelines.decision import Circumstances, Comparison, Decision, NotCompared
from pipelines.dvc_graph import StageNode
from pipelines.fetching import fetch
from pipelines.gate import decide, flat_metrics, read_metrics
from pipelines.news import data_fingerprint
from pipelines.registry import Version, content, contents, versions
from pipelines.registry_tags import read_tags
from pipelines.repository import commit_of, metrics_at
from pipelines.site import Site, folder_of

LOG = logging.getLogger(__name__)


def judge(site: Site, graph: list[StageNode], folder: Path) -> Decision:
    """Hold what lies in the worktree against the champion; notes go into `folder`."""
    rule = site.params.retrain
    challenger = read_metrics(site.tree / "artifacts" / "metrics")
    holder = site.champion()
    circumstances = Circumstances(
        artifact=rule.artifact,
        stage=rule.stage,
        champion_version=holder.version if holder else None,
        commit=commit_of(site.tree, "HEAD"),
        data_fingerprint=data_fingerprint(site, graph),
    )
    if holder is None:
        decision = decide(None, challenger, rule.gate)
    else:
        theirs = flat_metrics(metrics_at(site.main, holder.commit))
        known = _known(site, content(site.tree, rule.artifact, None).hash)
        if known is not None:
            decision = Decision(False, known, (), challenger, theirs)
        else:
            decision = decide(theirs, challenger, rule.gate, _compared(site, holder, folder))
    return replace(
        decision,
        circumstances=circumstances,
        decided_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _known(site: Site, made: str) -> str | None:
    """Return a sentence where what was made is a version that serves or has served, else None."""
    rule = site.params.retrain
    tags = read_tags(site.main, rule.artifact)
    served = {tag.commit for tag in tags if tag.stage == rule.stage and not tag.cancels}
    for version in versions(site.main, rule.artifact):
        held = contents(site.main, version.commit).get(rule.artifact)
        if held is None or held.hash != made:
            continue
        if rule.stage in version.stages:
            return f"the pipeline gave the champion, {version.version}, again"
        if version.commit in served:
            return (
                f"the pipeline gave {version.version} again, which was taken out of use: only a "
                f"person puts it back (python -m pipelines.registry promote {rule.artifact} "
                f"--version {version.version})"
            )
    return None


def _compared(site: Site, holder: Version, folder: Path) -> Comparison | NotCompared | None:
    """Let both sit the exam, in a process of its own."""
    if site.params.retrain.gate.comparison is None:
        return None
    try:
        champions = fetch(site.main, holder) / folder_of(site, holder)
    except MaestroError as error:
        return NotCompared(f"the champion cannot be had: {error}", refused=True)
    out = folder / "comparison.json"
    challengers = content(site.tree, holder.artifact, None).path
    site.program(
        "pipelines.comparison",
        *("--champion", str(champions.resolve()), "--challenger", challengers),
        *("--out", str(out.resolve())),
    )
    return read_result(out)


def report_decision(site: Site, folder: Path) -> None:
    """Write the report again, with the decision in it. A fault in it changes nothing else."""
    if not (site.tree / "artifacts/report").exists():
        return
    try:
        site.program(
            "pipelines.decision_report",
            *("--decision", str((folder / "decision.json").resolve())),
            *("--out", str((folder / "report").resolve())),
        )
    except Interrupted:
        raise
    except MaestroError as error:
        LOG.warning("the report of this decision could not be written: %s", error)


def new_folder(site: Site) -> Path:
    """Return the folder for what is kept of this run, where no later one replaces it."""
    folder = site.home / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    folder.mkdir(parents=True)
    return folder
