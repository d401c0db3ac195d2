"""What follows from a decision: commit, tags, and letting others have them.

In this order, so that a kill anywhere leaves a whole state: results are committed on the branch of
retraining; tags make the commit a version and the champion; then DVC's files are pushed, and only
after them the branch and the tags. A run after a kill finds the same results, decides the same and
goes on; what was not pushed is noted before the tags are made, and tried again by every run.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from mae.errors import Interrupted, MaestroError
from mae.files import read_json, write_json
from pipelines.decision import Approval, Decision
from pipelines.registry import Version, champion, promote, versions
from pipelines.repository import commit_of, file_at, git, git_agrees, record_results
from pipelines.site import Site
from pipelines.worktree import back_to, merge

LOG = logging.getLogger(__name__)

_WAITING_REF = "refs/maestro/waiting"


@dataclass(frozen=True)
class Candidate:
    """A challenger that passed the gate and waits for a person. run: the folder in runs/retrain;
    before: the commit of the branch that `commit` follows."""

    run: str
    commit: str
    before: str
    champion_version: str | None


def put_to_use(site: Site, decision: Decision) -> Version:
    """Commit the results in the worktree, make them a version, and let it serve."""
    commit = record_results(site.tree, _message(site, decision))
    return _serve(site, decision, commit)


def _message(site: Site, decision: Decision) -> str:
    return f"Retrain {site.params.retrain.artifact}\n\n{decision.reason}"


def _serve(site: Site, decision: Decision, commit: str) -> Version:
    rule = site.params.retrain
    if rule.publish.git_remote or rule.publish.dvc_remote:
        write_json(_unpublished(site), {"commit": commit})
    return promote(site.main, rule.artifact, rule.stage, commit=commit, message=decision.reason)


def settle(site: Site) -> None:
    """Withdraw what still serves beside the champion, after a kill between two tags."""
    rule = site.params.retrain
    holder = champion(site.main, rule.artifact, rule.stage)
    serving = [one for one in versions(site.main, rule.artifact) if rule.stage in one.stages]
    if holder is not None and len(serving) > 1:
        promote(site.main, rule.artifact, rule.stage, version=holder.version)


# --- letting others have it ---------------------------------------------------------------------


def _unpublished(site: Site) -> Path:
    return site.home / "unpublished.json"


def publish(site: Site) -> None:
    """Push files, then the branch and the tags, where there is something that was not pushed.

    Raises MaestroError where a remote does not take them; nothing refers to files that are not
    there then, and the next call tries again.
    """
    if not _unpublished(site).exists():
        return
    to, artifact = site.params.retrain.publish, site.params.retrain.artifact
    if to.dvc_remote:
        site.program("dvc", "push", "--quiet", "--remote", to.dvc_remote, *_revisions(site))
    if to.git_remote:
        tags = [f"refs/tags/{artifact}{mark}*" for mark in "@#"]
        refs = [f"refs/heads/{to.branch}", *tags]
        git(
            site.main,
            *("push", "--quiet", "--atomic", to.git_remote),
            *(f"{ref}:{ref}" for ref in refs),
            hooks=False,
        )
    _unpublished(site).unlink()


def _revisions(site: Site) -> list[str]:
    """Return what lets `dvc push` push the champion's files: of every version, where the branch
    has moved on since."""
    holder = site.champion()
    if holder and file_at(site.main, holder.commit, "dvc.lock") != file_at(
        site.tree, "HEAD", "dvc.lock"
    ):
        return ["--all-tags"]
    return []


def publish_or_say(site: Site) -> str:
    """Publish; return a sentence on why that was not possible, or ''."""
    try:
        publish(site)
    except Interrupted:
        raise
    except MaestroError as error:
        LOG.warning("not published; the next run tries again: %s", error)
        return f"not published, which the next run tries again: {error}"
    return ""


# --- a person has the last word -----------------------------------------------------------------


def set_aside(site: Site, decision: Decision, folder: Path) -> Candidate:
    """Keep a challenger that waits for a person: as a commit that no branch holds yet."""
    before = commit_of(site.tree, "HEAD")
    commit = record_results(site.tree, _message(site, decision))
    git(site.tree, "update-ref", _WAITING_REF, commit)
    candidate = Candidate(folder.name, commit, before, decision.circumstances.champion_version)
    write_json(_waiting(site), asdict(candidate))
    back_to(site.tree, before)
    return candidate


def _waiting(site: Site) -> Path:
    return site.home / "waiting.json"


def waiting(site: Site) -> Candidate | None:
    """Return the challenger that waits for a person, or None."""
    try:
        return Candidate(**read_json(_waiting(site)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise MaestroError(f"{_waiting(site)} is damaged ({error!r}): delete it") from None


def forget_candidate(site: Site) -> None:
    _waiting(site).unlink(missing_ok=True)
    if git_agrees(site.main, "rev-parse", "--verify", "--quiet", _WAITING_REF):
        git(site.main, "update-ref", "-d", _WAITING_REF)


def answer(site: Site, candidate: Candidate, approval: Approval) -> tuple[Decision, Version | None]:
    """Do as a person has said of a candidate; return the decision and the version that now serves.

    Raises MaestroError when another champion has come since: the candidate never met it.
    """
    path = site.home / candidate.run / "decision.json"
    decision = Decision.read(path).answered(approval)
    holder = site.champion()
    serving = holder.version if holder else None
    version = None
    taken_up = holder is not None and holder.commit == candidate.commit
    if decision.promote and not taken_up and serving != candidate.champion_version:
        forget_candidate(site)
        raise MaestroError(
            f"{serving or 'nothing'} serves now, and the candidate of {candidate.run} was held "
            f"against {candidate.champion_version or 'nothing'}: retrain again"
        )
    if decision.promote:
        back_to(site.tree)
        merge(site.tree, candidate.commit, "what was approved")
        version = _serve(site, decision, candidate.commit)
    decision.write(path)
    forget_candidate(site)
    return decision, version
