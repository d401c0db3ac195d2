import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from small_project import Exported

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> "Exported":
    from small_project import Exported, pretrained_project

    from mae.export.export import export_encoder

    root = tmp_path_factory.mktemp("exported")
    params = pretrained_project(root)
    numbers = export_encoder(
        root / "artifacts/pretrain",
        root / "data/shards/images",
        root / "artifacts/export",
        params.export,
        params.runtime,
    )
    return Exported(root, params, numbers)
