from pathlib import Path

import pytest

from mae.params import read_params

PROFILES = sorted((Path(__file__).parents[1] / "profiles").glob("*.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_is_valid_and_states_what_to_expect(path: Path) -> None:
    params = read_params(path)
    assert params.pretrain.total_steps(10_000) > 0
    head = path.read_text().split("\n\n")[0]
    assert all(word in head for word in ("command", "data", "hardware", "expect"))


def test_there_are_profiles() -> None:
    assert PROFILES
