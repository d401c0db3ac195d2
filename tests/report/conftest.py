import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with everything a report tells; tests that change it take a copy."""
    from made_up import write_findings
    from small_project import pretrained_project

    root = tmp_path_factory.mktemp("project")
    pretrained_project(root)
    write_findings(root)
    return root
