"""How a stage is to be run, by the narrowest name that params.yaml gives."""

import pytest

from mae.errors import ParamsError
from mae.params import FlowsParams
from pipelines.dvc_graph import StageNode
from pipelines.policies import check_policies, policy_of

FLOWS = FlowsParams.model_validate(
    {
        "workers": 1,
        "default": {"retries": 1, "timeout_minutes": 5.0},
        "stages": {
            "evaluate": {"retries": 2, "tags": ["gpu"]},
            "evaluate@knn": {"tags": []},
        },
    }
)
GRAPH = [StageNode("pretrain", ()), StageNode("evaluate@knn", ()), StageNode("evaluate@linear", ())]


@pytest.mark.parametrize(
    ("stage", "retries", "tags"),
    [
        ("pretrain", 1, ()),
        ("evaluate@linear", 2, ("gpu",)),
        ("evaluate@knn", 2, ()),
    ],
)
def test_what_is_not_said_comes_from_the_wider_name(
    stage: str, retries: int, tags: tuple[str, ...]
) -> None:
    policy = policy_of(stage, FLOWS)
    assert (policy.retries, policy.tags, policy.timeout_minutes) == (retries, tags, 5.0)


def test_policies_of_stages_that_exist_pass() -> None:
    check_policies(GRAPH, FLOWS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("pretrian", "did you mean 'pretrain'"), ("xyz", "it has: pretrain, evaluate, evaluate@knn")],
)
def test_a_policy_of_no_stage_is_refused(name: str, hint: str) -> None:
    flows = FlowsParams.model_validate({"workers": 1, "default": {}, "stages": {name: {}}})
    with pytest.raises(ParamsError, match=f"flows.stages.{name}: .*{hint}"):
        check_policies(GRAPH, flows)
