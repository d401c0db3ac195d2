from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with everything a report tells; tests that change it take a copy."""
    from tests.report.made_up import write_findings
    from tests.small_project import pretrained_project

    root = tmp_path_factory.mktemp("project")
    pretrained_project(root)
    write_findings(root)
    return root
