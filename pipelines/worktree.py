"""The checkout that retraining works in, so that nobody's own is ever touched.

A git worktree in runs/retrain/worktree, on a branch of its own, with DVC's cache in common. It
stays from run to run: shards are built upon, and interrupted training resumes. Nothing in it is
anybody's work, so what a killed run left half done is simply put back to the last commit. For
callers that hold the lock of retraining.
"""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from mae.errors import MaestroError
from mae.params import Params, PublishParams
from pipelines.repository import RESULTS, commit_of, git, git_agrees

LOG = logging.getLogger(__name__)

HOME = Path("runs/retrain")
PARAMS = "params.yaml"
_MARKS = re.compile(r"[*?\[{]")
_UNTRACKED = ("artifacts/metrics", "data/reference")


def prepare(main: Path, publish: PublishParams) -> Path:
    """Return the project in the worktree: its branch as last committed, with HEAD of `main`, and
    what others have published on the branch, merged into it.

    What git tracks of results stays the branch's own; params.yaml is always that of HEAD. Raises
    MaestroError where HEAD is on no branch, where the merge needs a person, or the worktree
    cannot be had; nothing is changed then.
    """
    head = commit_of_project(main)
    _demand_ignored(main)
    tree = _standing(main, publish) or _made(main, publish)
    if publish.git_remote:
        _fetch(main, publish)
        theirs = f"refs/remotes/{publish.git_remote}/{publish.branch}"
        if git_agrees(main, "rev-parse", "--verify", "--quiet", theirs):
            merge(tree, commit_of(main, theirs), f"what {publish.git_remote} has")
    if on_branch(main):
        merge(tree, head, "what has been committed")
        _take_params(tree, head)
    elif not git_agrees(tree, "merge-base", "--is-ancestor", head, "HEAD"):
        raise MaestroError(
            f"{main} is at commit {head[:7]}, which is on no branch (detached HEAD), so it is not "
            "taken up: git switch to a branch, whose commits retraining follows"
        )
    share_cache(main, tree)
    return tree


def project_in(main: Path) -> Path:
    """Return where the project lies in the worktree, whether or not it is there yet."""
    return _worktree(main) / git(main, "rev-parse", "--show-prefix").strip()


def commit_of_project(main: Path) -> str:
    """Return HEAD. Raises MaestroError for a repository without commits."""
    git(main, "rev-parse", "--git-dir")
    if not git_agrees(main, "rev-parse", "--verify", "--quiet", "HEAD"):
        raise MaestroError(
            f"{main} has no commit yet: commit the project first (git add -A, git commit)"
        )
    return commit_of(main, "HEAD")


def on_branch(main: Path) -> bool:
    return git_agrees(main, "symbolic-ref", "--quiet", "HEAD")


def back_to(tree: Path, commit: str = "HEAD") -> None:
    """Make the worktree what `commit` holds. What git ignores (shards, runs) stays."""
    git(tree, "reset", "--quiet", "--hard", commit, hooks=False)
    git(tree, "clean", "--quiet", "-fd", "--", *_UNTRACKED, hooks=False)


# --- having it ----------------------------------------------------------------------------------


def _worktree(main: Path) -> Path:
    return main.resolve() / HOME / "worktree"


def _demand_ignored(main: Path) -> None:
    if not git_agrees(main, "check-ignore", "--quiet", str(HOME / "worktree")):
        raise MaestroError(
            f"git does not ignore {main / HOME}, where retraining works: add /runs/ to .gitignore"
        )


def _standing(main: Path, publish: PublishParams) -> Path | None:
    """Return the project in the worktree that is there, put back to its last commit, or None."""
    place, branch = _worktree(main), publish.branch
    if not place.exists():
        return None
    _reattach(main, place)
    if not _is_own(place):
        if (project_in(main) / "runs").exists():
            raise MaestroError(
                f"{place} is no git worktree any more, and what is in runs/ there can be resumed: "
                "move it away, and retraining makes a new one"
            )
        return None  # of a git that was killed while it made this
    _unlock(place, branch)
    git(place, "reset", "--quiet", "--hard", hooks=False)
    if git(place, "branch", "--show-current").strip() != branch:
        _have_branch(main, publish)
        git(place, "checkout", "--quiet", branch, hooks=False)
    tree = project_in(main)
    back_to(tree)
    return tree


def _reattach(main: Path, place: Path) -> None:
    """Let the worktree belong to this checkout, which may have been moved or copied."""
    link = place / ".git"
    if link.is_file():
        common = (main / git(main, "rev-parse", "--git-common-dir").strip()).resolve()
        theirs = Path(link.read_text(encoding="utf-8").removeprefix("gitdir: ").strip())
        ours = common / "worktrees" / theirs.name
        if theirs != ours and ours.is_dir():
            link.write_text(f"gitdir: {ours}\n", encoding="utf-8")
    git_agrees(main, "worktree", "repair", str(place))


def _is_own(place: Path) -> bool:
    if not (place / ".git").is_file() or not git_agrees(place, "rev-parse", "HEAD"):
        return False
    return Path(git(place, "rev-parse", "--show-toplevel").strip()) == place


def _unlock(place: Path, branch: str) -> None:
    """Remove the lock files of a git that was killed here; no other works here now."""
    own = Path(git(place, "rev-parse", "--absolute-git-dir").strip())
    common = place / git(place, "rev-parse", "--git-common-dir").strip()
    stale = [common / "refs" / "heads" / f"{branch}.lock"]
    if own.resolve() != common.resolve():  # else it is the person's own
        stale += [own / "index.lock", own / "HEAD.lock"]
    for lock in stale:
        if lock.exists():
            LOG.warning("%s was left by a git that was killed: removed", lock)
            lock.unlink(missing_ok=True)


def _made(main: Path, publish: PublishParams) -> Path:
    place = _worktree(main)
    git_agrees(main, "worktree", "remove", "--force", "--force", str(place))
    shutil.rmtree(place, ignore_errors=True)
    git(main, "worktree", "prune")
    _have_branch(main, publish)
    git(main, "worktree", "add", "--quiet", str(place), publish.branch, hooks=False)
    return project_in(main)


def _have_branch(main: Path, publish: PublishParams) -> None:
    branch = publish.branch
    if git(main, "branch", "--show-current").strip() == branch:
        raise MaestroError(
            f"branch '{branch}' is checked out in {main}, and retraining commits to it: "
            "git switch to another, or name another in retrain.publish.branch"
        )
    if not git_agrees(main, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}"):
        git(main, "branch", "--no-track", branch, _beginning(main, publish))


def _beginning(main: Path, publish: PublishParams) -> str:
    """Return the commit that a branch which is not there yet begins with."""
    if publish.git_remote:
        _fetch(main, publish)
        theirs = f"refs/remotes/{publish.git_remote}/{publish.branch}"
        if git_agrees(main, "rev-parse", "--verify", "--quiet", theirs):
            return theirs
    if not on_branch(main):
        raise MaestroError(
            f"{main} is on no branch (detached HEAD), so retraining does not know what to follow: "
            "git switch to one"
        )
    return "HEAD"


def _fetch(main: Path, publish: PublishParams) -> None:
    try:
        git(main, "fetch", "--quiet", "--tags", str(publish.git_remote), hooks=False)
    except MaestroError as error:
        LOG.warning("what others have published is not known now: %s", error)


def merge(tree: Path, commit: str, what: str) -> None:
    """Merge a commit; of results, the branch keeps its own. Raises MaestroError for conflicts
    elsewhere, and leaves all as it was."""
    if git_agrees(tree, "merge-base", "--is-ancestor", commit, "HEAD"):
        return
    if git_agrees(tree, "merge-base", "--is-ancestor", "HEAD", commit):
        git(tree, "merge", "--quiet", "--ff-only", commit, hooks=False)
        return
    before = commit_of(tree, "HEAD")
    git_agrees(tree, "merge", "--quiet", "--no-commit", "--no-ff", commit)
    try:
        base = git(tree, "merge-base", before, commit).strip()
        for path in RESULTS:
            if _holds(tree, before, path) and not git_agrees(
                tree, "diff", "--quiet", base, before, "--", path
            ):
                git(tree, "restore", f"--source={before}", "--staged", "--worktree", "--", path)
        if _holds(tree, commit, PARAMS):
            git(tree, "checkout", "--quiet", commit, "--", PARAMS)
        if torn := git(tree, "diff", "--name-only", "--diff-filter=U").split("\n")[:-1]:
            raise MaestroError(
                f"{what} cannot be merged into branch "
                f"'{git(tree, 'branch', '--show-current').strip()}' ({', '.join(torn[:5])}): merge "
                f"by hand in {tree} and commit, or delete the branch and {tree} to begin anew"
            )
        git(tree, "commit", "--quiet", "--message", f"Merge {what}", hooks=False)
    except MaestroError:
        back_to(tree, before)
        raise


def _holds(tree: Path, commit: str, path: str) -> bool:
    return bool(git(tree, "ls-tree", "--name-only", commit, path).strip())


def _take_params(tree: Path, head: str) -> None:
    """Let params.yaml be a person's: what an earlier run wrote into it is not theirs."""
    if _holds(tree, head, PARAMS):
        git(tree, "checkout", "--quiet", head, "--", PARAMS)


# --- what git does not bring --------------------------------------------------------------------


def share_cache(main: Path, tree: Path) -> None:
    """Let DVC in the worktree use the cache and the remotes of the main checkout."""
    from dvc.config import Config
    from dvc.exceptions import DvcException

    if not (tree / ".dvc").is_dir():
        raise MaestroError(f"{main} is no DVC project, or .dvc/config is not committed")
    try:
        theirs = Config(str(main.resolve() / ".dvc"))
        local = theirs.load_one("local")
        remotes = {**theirs.load_one("repo")["remote"], **local["remote"]}
        # Paths are relative to the file they stand in, and come back from DVC as absolute.
        places = {
            name: {"url": f"{remote['url']}"}
            for name, remote in remotes.items()
            if remote.get("url", "").startswith("/")
        }
        with Config(str(tree / ".dvc")).edit("local") as ours:
            ours.update({key: value for key, value in local.items() if value})
            ours["remote"] = {
                name: {**local["remote"].get(name, {}), **places.get(name, {})}
                for name in {*local["remote"], *places}
            }
            ours["cache"]["dir"] = f"{theirs['cache'].get('dir') or main.resolve() / '.dvc/cache'}"
    except DvcException as error:
        raise MaestroError(f"DVC's configuration of {main} cannot be used: {error}") from None


def link_sources(main: Path, tree: Path, params: Params) -> None:
    """Let relative paths of params.yaml lead from the worktree to what lies in the main checkout
    beside what git tracks: sources, weights. What DVC tracks there comes from its cache instead.
    """
    for name in _named_paths(params):
        for source in _meant(main, name):
            link = tree / source
            target = (main / source).resolve()
            if link.is_symlink() and link.resolve() != target:
                link.unlink()
            if target.exists() and not link.exists() and not (tree / f"{source}.dvc").exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)


def tracked_by_dvc(tree: Path, params: Params) -> list[str]:
    """Return the .dvc files of paths in params.yaml, which DVC brings."""
    files = (f"{name}.dvc" for name in _named_paths(params))
    return [file for file in files if (tree / file).is_file()]


def _named_paths(params: Params) -> list[str]:
    named = [
        params.data.images.path,
        params.data.scenes.path,
        params.pretrain.start_from,
        params.model.loss.weights,
        *params.evaluate.baselines.values(),
    ]
    return [name for name in named if name and "://" not in name and not Path(name).is_absolute()]


def _meant(main: Path, name: str) -> Iterator[Path]:
    """Yield the paths below `main` that a path or a pattern of sources stands for."""
    for one in map(str.strip, name.split("::")):
        if (main / one).exists() or not _MARKS.search(one):
            yield Path(one)
            continue
        parts = Path(one).parts
        depth = next(number for number, part in enumerate(parts) if _MARKS.search(part))
        # More than braces say may be linked, which does no harm: the pattern is read again there.
        wild = re.sub(r"\{[^{}]*\}", "*", parts[depth])
        folder = Path(*parts[:depth])
        yield from (folder / found.name for found in (main / folder).glob(wild))
