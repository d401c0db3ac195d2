"""`mae params`: the schedules that follow from the parameters and the number of images."""

from typing import Any

from mae.params import Params, parse_params, read_params
from mae.report.plan import Known, plan_of
from tests.small_project import ROOT

KNOWN = Known(images=1000, classes=10)


def params(**evaluate: Any) -> Params:
    content = read_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    for name, changes in evaluate.items():
        section = content["evaluate"]
        section[name] = {**section[name], **changes} if isinstance(changes, dict) else changes
    return parse_params(content)


def test_rates_to_choose_from_are_listed() -> None:
    probe = {"blr": [0.1, 0.2, 0.4], "batch": 512, "epochs": 3}
    rows = dict(plan_of(params(protocols=["linear_probe"], linear_probe=probe), KNOWN))
    assert rows["linear probe"].startswith("1000 images, effective batch 512, lr 0.2 (blr 0.1), 3")
    assert rows["linear probe"].endswith("; or blr 0.2, 0.4: the best on minival")
    one = dict(plan_of(params(protocols=["linear_probe"], linear_probe={"blr": [0.1]}), KNOWN))
    assert "minival" not in one["linear probe"]


def test_each_budget_of_labels_has_its_schedule() -> None:
    budgets = [
        {"labels_per_class": 1, "epochs": 5, "seeds": 1},
        {"labels_per_class": 500, "epochs": 1, "seeds": 1},
        {"labels_per_class": None, "epochs": 1, "seeds": 1},
    ]
    wanted = ["finetune", "partial", "lora"]
    lora = {"labels_per_class": 3, "blr": [0.5]}
    rows = dict(plan_of(params(protocols=wanted, finetune={"budgets": budgets}, lora=lora), KNOWN))
    labels = {name: int(text.split()[0]) for name, text in rows.items() if " images, " in text}
    assert labels == {
        "pretrain": 1000,
        "fine-tune, 1 each": 10,
        "fine-tune, 500 each": 1000,  # there are no more
        "fine-tune, all": 1000,
        "partial, 10 each": 100,
        "adapters, 3 each": 30,
    }
    assert "(blr 0.5)" in rows["adapters, 3 each"]


def test_only_what_runs_and_can_be_learned_is_planned() -> None:
    def names(known: Known) -> list[str]:
        return [name for name, _ in plan_of(params(protocols=["knn"]), known)]

    assert names(KNOWN)[-1] == "pretrain"
    everything = params(protocols=["finetune", "linear_probe"])
    assert [name for name, _ in plan_of(everything, Known(1000, 0))][-1] == "pretrain"
