from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.small_project import Exported


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> "Exported":
    from mae.export.export import export_encoder
    from tests.small_project import Exported, pretrained_project

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
