"""Is there anything new to learn from? Asked of the sources, then of the shards made of them."""

import logging
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from mae.errors import Interrupted, MaestroError
from mae.files import read_json, write_json
from pipelines.dvc_graph import StageNode
from pipelines.registry import Version
from pipelines.repository import yaml_at
from pipelines.site import Ending, Site

LOG = logging.getLogger(__name__)

_PROFILES = "data/validation/profile-"


def look(site: Site) -> str | None:
    """Return what changes when the sources do; None where only sharding can tell.

    Raises MaestroError for sources that are not there.
    """
    with tempfile.TemporaryDirectory() as folder:
        params, out = Path(folder) / "params.json", Path(folder) / "sources.json"
        params.write_text(site.params.model_dump_json(by_alias=True), encoding="utf-8")
        site.program("pipelines.sources_watch", "--params", str(params), "--out", str(out))
        sources: str | None = read_json(out)["sources"]
    return sources


def seen_before(site: Site, sources: str | None) -> str | None:
    """Return how the retraining ended that saw the same sources beside the same champion and the
    same commit: another one may make more of data that came to nothing."""
    seen = _seen(site)
    if sources is None or any(seen.get(name) != now for name, now in _now(site, sources).items()):
        return None
    return str(seen["ended"])


def remember(site: Site, sources: str | None, ending: Ending) -> None:
    """Keep how it ended for sources as they were before they were read."""
    when = datetime.now(UTC).isoformat(timespec="minutes")
    ended = f"{when}: {ending.message}"
    write_json(site.home / "seen.json", {**_now(site, sources), "ended": ended})


def remember_answer(site: Site, ending: Ending) -> None:
    """Keep how it ended for the sources that were seen last, whatever they are by now."""
    remember(site, _seen(site).get("sources"), ending)


def _seen(site: Site) -> dict[str, Any]:
    try:
        return dict(read_json(site.home / "seen.json"))
    except (OSError, ValueError, TypeError):
        return {}


def _now(site: Site, sources: str | None) -> dict[str, str | None]:
    holder = site.champion()
    champion = holder.version if holder else None
    return {"sources": sources, "champion": champion, "head": site.head}


def sources_of(graph: list[StageNode]) -> list[str]:
    """Return the stages that need no other: they alone read what lies outside the project."""
    return [node.name for node in graph if not node.needs]


def to_force(graph: list[StageNode], refresh_sources: bool) -> list[str]:
    return sources_of(graph) if refresh_sources else []


def bring_sources(site: Site, graph: list[StageNode]) -> None:
    """Have the shards that the branch names where there are none, to build the next upon."""
    outs = made_from_sources(yaml_at(site.tree, "dvc.lock", "HEAD"), graph)
    if not outs or all((site.tree / path).exists() for path in outs):
        return
    for way in ("checkout", "pull"):
        try:
            site.program("dvc", way, "--quiet", "--force", *outs)
            return
        except Interrupted:
            raise
        except MaestroError as error:
            fault = error
    LOG.warning("the shards of the last version cannot be had, so all are made anew: %s", fault)


def made_from_sources(lock: Mapping[str, Any], graph: list[StageNode]) -> dict[str, str]:
    """Return path -> hash of what the stages without needs have made, as dvc.lock says."""
    stages = lock.get("stages", {})
    return {
        out["path"]: out["md5"]
        for name in sources_of(graph)
        for out in stages.get(name, {}).get("outs", [])
        if "md5" in out and not out["path"].startswith("artifacts/metrics/")
    }


def is_new(site: Site, graph: list[StageNode]) -> bool:
    """Tell whether the shards are other ones than the champion's."""
    holder = site.champion()
    if holder is None:
        return True
    theirs = made_from_sources(yaml_at(site.main, "dvc.lock", holder.commit), graph)
    return theirs != data_fingerprint(site, graph)


def data_fingerprint(site: Site, graph: list[StageNode]) -> dict[str, str]:
    lock = yaml.safe_load((site.tree / "dvc.lock").read_text(encoding="utf-8"))
    return made_from_sources(lock, graph)


def set_references(site: Site) -> None:
    """Let drift be measured from the champion's data, and set the exam where there is none."""
    holder = site.champion()
    if not (site.tree / "data/reference").is_dir():
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments = []
        if holder is not None and _bring_profiles(site, holder, Path(folder)):
            arguments = ["--profiles", folder]
        site.program("pipelines.reference", *arguments)


def _bring_profiles(site: Site, holder: Version, folder: Path) -> bool:
    """Write the profiles of the champion's data, as DVC has them, into a folder."""
    lock = yaml_at(site.main, "dvc.lock", holder.commit)
    outs = [out for stage in lock.get("stages", {}).values() for out in stage.get("outs", [])]
    wanted = [out["path"] for out in outs if out["path"].startswith(_PROFILES)]
    for path in wanted:
        try:
            site.program(
                *("dvc", "get", "--quiet", str(site.tree), path, "--rev", holder.commit),
                *("--out", str(folder / Path(path).name), "--force"),
            )
        except Interrupted:
            raise
        except MaestroError as error:
            LOG.warning("drift from the champion's data cannot be measured: %s", error)
            return False
    return bool(wanted)
