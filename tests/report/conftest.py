import importlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from mae.files import write_json
from mae.params import Params, parse_params
from mae.params.evaluation import Protocol
from mae.training.devices import Place


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with everything a report tells; tests that change it take a copy."""
    from tests.report.made_up import results, write_findings
    from tests.small_project import pretrained_project

    root = tmp_path_factory.mktemp("project")
    params = pretrained_project(root)
    asked = [name for name in results() if name != "detection"]
    write_params(root, params, {"protocols": asked})
    write_findings(root)
    return root


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project that every protocol has really measured, with next to no steps."""
    from mae.evaluation import feature_cache
    from mae.model.artifact import read_info
    from tests.small_project import pretrained_project

    root = tmp_path_factory.mktemp("measured")
    params = write_params(root, pretrained_project(root), _QUICK)
    encoder = read_info(root / "artifacts/pretrain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_cache, "FOLDER", root / "features")
        for protocol in params.evaluate.protocols:
            pictures = root / "artifacts/plots" / protocol
            pictures.mkdir(parents=True)
            module = importlib.import_module(f"mae.evaluation.{protocol}")
            place = Place(torch.device("cpu"))
            shards, pretrained = root / "data/shards/images", root / "artifacts/pretrain"
            outcome = module.run(params, shards, pretrained, place, pictures)
            content = {**asdict(outcome), "encoder": encoder}
            write_json(root / f"artifacts/results/{protocol}.json", content)
    yield root


_QUICK: dict[str, Any] = {
    "protocols": list(get_args(Protocol)),
    "knn": {"k": [2, 3]},
    "linear_probe": {"epochs": 2, "seeds": 2, "blr": [1.0]},
    "few_shot": {"shots": [1, 100], "draws": 2},
    "finetune": {
        "budgets": [
            {"labels_per_class": 2, "epochs": 1, "seeds": 2},
            {"labels_per_class": None, "epochs": 1, "seeds": 1},
        ]
    },
    "partial": {"blocks": [0, 1, 9], "labels_per_class": 2, "epochs": 1},
    "lora": {"labels_per_class": 2, "epochs": 1, "rank": 2},
    "label_budget": {"shares": [0.5, 1.0], "seeds": 2},
    "retrieval": {"k": [1, 2, 500]},
    "robustness": {"corruptions": ["blur", "noise"], "severities": [1, 2]},
    "test_time": {"images": 4, "steps": 1, "views": 2, "corruptions": ["blur"]},
}


def write_params(root: Path, params: Params, evaluate: dict[str, Any]) -> Params:
    """Write params.yaml with a section of `evaluate` for each name changed, and return it."""
    content = params.model_dump(mode="json", by_alias=True)
    for name, changes in evaluate.items():
        section = content["evaluate"]
        section[name] = {**section[name], **changes} if isinstance(changes, dict) else changes
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    return parse_params(content)
