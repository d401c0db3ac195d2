"""What retraining does around the pipeline: what to force, whom to compare, what to put to use."""

from datetime import UTC, datetime
from pathlib import Path

from mae.params import RetrainParams, read_params
from pipelines.dvc_graph import StageNode
from pipelines.gate import Decision, decide, flat_metrics, read_metrics
from pipelines.registry import Version, champion, content, promote
from pipelines.repository import metrics_at, record_results


def retrain_params(root: Path) -> RetrainParams:
    """Return the `retrain` section of the project's params.yaml."""
    return read_params(root / "params.yaml").retrain


def to_force(graph: list[StageNode], params: RetrainParams) -> list[str]:
    return [node.name for node in graph if not node.needs] if params.refresh_sources else []


def judge(root: Path, params: RetrainParams) -> Decision:
    """Hold what lies in the working tree against the champion's commit."""
    challenger = read_metrics(root / "artifacts" / "metrics")
    holder = champion(root, params.artifact, params.stage)
    if holder is None:
        return decide(None, challenger, params.gate)
    theirs = flat_metrics(metrics_at(root, holder.commit))
    held = content(root, params.artifact, holder.commit)
    if content(root, params.artifact, None).hash == held.hash:
        reason = f"the pipeline gave the champion, {holder.version}, again"
        return Decision(False, reason, (), challenger, theirs)
    return decide(theirs, challenger, params.gate)


def record_decision(root: Path, decision: Decision) -> Path:
    """Write the decision where no later one replaces it; return the file."""
    path = root / "runs" / "retrain" / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.json"
    decision.write(path)
    return path


def put_to_use(root: Path, params: RetrainParams, decision: Decision) -> Version:
    """Commit the results, make them a version, and let it serve."""
    record_results(root, f"Retrain {params.artifact}\n\n{decision.reason}")
    return promote(root, params.artifact, params.stage, message=decision.reason)
