"""What a retraining would do now, found out without changing anything."""

import json
import threading
from dataclasses import replace
from pathlib import Path

from mae.params import GateParams, Params
from pipelines import news
from pipelines.children import run_module
from pipelines.dvc_graph import read_graph
from pipelines.registry import champion
from pipelines.repository import git, git_agrees
from pipelines.site import Site, committed_params
from pipelines.worktree import commit_of_project, on_branch, project_in


def rehearse(main: Path) -> list[str]:
    """Return, line by line, what a retraining of the project in `main` would find and do."""
    main = main.resolve()
    head = commit_of_project(main)
    params = committed_params(main)
    tree = project_in(main)
    site = Site(
        main,
        head,
        tree if (tree / "dvc.yaml").exists() else main,
        params,
        lambda line: None,
        threading.Event(),
    )
    holder = champion(main, params.retrain.artifact, params.retrain.stage)
    lines = [
        f"champion: {holder.name if holder else 'none yet'}",
        _commits(main, params, head),
        *_edits(main),
    ]
    new = _new(replace(site, tree=main), holder is None)  # sources lie there, linked or not
    lines.append(new)
    if new.startswith("nothing new"):
        return [*lines, "so nothing would be trained"]
    return [*lines, _stages(site), *_gate(params.retrain.gate, holder is None), _publishing(params)]


def _commits(main: Path, params: Params, head: str) -> str:
    branch = params.retrain.publish.branch
    if not on_branch(main):
        return f"HEAD is detached at {head[:7]}: it would not be taken up"
    if not git_agrees(main, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}"):
        return f"branch '{branch}' would be made from {head[:7]}"
    count = git(main, "rev-list", "--count", f"refs/heads/{branch}..{head}").strip()
    if count == "0":
        return f"branch '{branch}' has all that is committed"
    clean = git_agrees(main, "merge-tree", "--write-tree", f"refs/heads/{branch}", head)
    how = "" if clean else ", with conflicts (of results, the branch's own are kept)"
    return f"{count} commits would be merged into branch '{branch}'{how}"


def _edits(main: Path) -> list[str]:
    edited = git(main, "status", "--porcelain", "--untracked-files=no").splitlines()
    return [f"{len(edited)} files with uncommitted changes would not be used"] if edited else []


def _new(site: Site, first: bool) -> str:
    if not site.params.retrain.wait_for_data:
        return "it would be trained whether or not there is something new (wait_for_data: false)"
    looks = news.look(site)
    if looks is None:
        return "whether there is something new would be known after sharding"
    if seen := news.seen_before(site, looks):
        return f"nothing new: the sources are as they were; then, {seen}"
    return "no champion yet, so it would be trained" if first else "the sources have changed"


def _stages(site: Site) -> str:
    """Name the stages that would run: those that DVC finds changed, the sources, and all after."""
    graph = read_graph(site.tree)
    said = run_module(
        *("dvc", "status", "--json"),
        folder=site.tree,
        on_line=lambda line: None,
        stop=site.stop,
    )
    changed = json.loads(said.splitlines()[-1]) if said else {}
    sources = news.sources_of(graph) if site.params.retrain.refresh_sources else []
    stale: list[str] = []
    for node in graph:  # each comes after all it needs
        if node.name in changed or node.name in sources or set(node.needs) & set(stale):
            stale.append(node.name)
    return f"stages that would or may run: {', '.join(stale) or 'none'}"


def _gate(rule: GateParams, first: bool) -> list[str]:
    floors = [f"{metric} at least {bound:g}" for metric, bound in sorted(rule.floors.items())]
    ceilings = [f"{metric} at most {bound:g}" for metric, bound in sorted(rule.ceilings.items())]
    if first:
        return [f"gate: {'; '.join([f'{rule.metric} is there', *floors, *ceilings])}"]
    asked = [f"{rule.metric} ({rule.better} is better) gains at least {rule.margin:g}"]
    if rule.comparison:
        asked.append(
            f"on the same images the challenger gains more than {rule.margin:g} in "
            f"{rule.comparison.confidence:.0%} of resamples"
        )
    asked += [
        f"{metric} falls no further than {bound:g}" for metric, bound in rule.max_drop.items()
    ]
    if rule.max_drift is not None:
        asked.append(f"the data have moved no further than {rule.max_drift:g}")
    if rule.approval:
        asked.append("a person approves")
    return [f"gate: {'; '.join([*asked, *floors, *ceilings])}"]


def _publishing(params: Params) -> str:
    to = params.retrain.publish
    places = [
        f"DVC's files to remote '{to.dvc_remote}'" if to.dvc_remote else "",
        f"branch and tags to '{to.git_remote}'" if to.git_remote else "",
    ]
    where = " and ".join(filter(None, places)) or "nowhere (both remotes are null)"
    return f"a promotion would be committed on branch '{to.branch}' and pushed: {where}"
