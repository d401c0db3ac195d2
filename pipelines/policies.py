"""How each stage is run: what `flows` in params.yaml says of it."""

import difflib
from typing import Any

from mae.errors import ParamsError
from mae.params import FlowsParams, StagePolicy
from pipelines.dvc_graph import StageNode


def policy_of(stage: str, flows: FlowsParams) -> StagePolicy:
    """Return the policy of a stage: `evaluate@knn` before `evaluate` before the default, by key."""
    given: dict[str, Any] = {}
    for name in (_family(stage), stage):
        own = flows.stages.get(name, StagePolicy())
        given |= {key: getattr(own, key) for key in own.model_fields_set}
    return flows.default.model_copy(update=given)


def check_policies(graph: list[StageNode], flows: FlowsParams) -> None:
    """Raise ParamsError for a policy of a stage that dvc.yaml lacks."""
    stages = [node.name for node in graph]
    known = list(dict.fromkeys([*map(_family, stages), *stages]))
    for name in flows.stages:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(known)}"
            raise ParamsError(
                f"params.yaml: flows.stages.{name}: no such stage in dvc.yaml; {hint}"
            )


def _family(stage: str) -> str:
    return stage.partition("@")[0]
