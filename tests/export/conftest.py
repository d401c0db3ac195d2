import contextlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.small_project import Exported


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> "Exported":
    """Every precision and a classifier, of random weights; those beyond their limits left out."""
    from mae.export.export import export_encoder
    from mae.params import parse_params
    from tests.small_project import Exported, pretrained_project

    root = tmp_path_factory.mktemp("exported")
    content = pretrained_project(root).model_dump(mode="json", by_alias=True)
    content["export"] |= {
        "precisions": ["fp32", "fp16", "int8", "int8_static"],
        "on_refusal": "leave_out",
        "classifier": "logistic",
        "calibration_images": 16,
    }
    params = parse_params(content)
    with contextlib.chdir(root):  # the cache of features is relative
        numbers = export_encoder(
            root / "artifacts/pretrain",
            root / "data/shards/images",
            root / "artifacts/export",
            params,
        )
    return Exported(root, params, numbers)
