"""The `validate` section: every limit can be switched off, and faults are named."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mae.errors import ParamsError
from mae.params import parse_params
from mae.params.validation import SeverityParams, ValidateParams

ROOT = Path(__file__).parents[1]
NO_LIMITS = {"max_outside", "drift", "severity"}


def content(**changes: Any) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (found["validate"][section] if section else found["validate"])[name] = value
    return found


def test_every_limit_has_a_severity_and_may_be_null() -> None:
    limits = set(ValidateParams.model_fields) - NO_LIMITS
    without_limit = {"splits", "labels", "converted"}
    assert limits | without_limit == set(SeverityParams.model_fields)
    params = parse_params(content(**dict.fromkeys(limits))).validate_
    assert all(getattr(params, name) is None for name in limits)


@pytest.mark.parametrize("path", ["params.yaml", *map(str, (ROOT / "profiles").glob("*.yaml"))])
def test_every_key_stands_in_the_file(path: str) -> None:
    written = yaml.safe_load((ROOT / path).read_text())["validate"]
    assert set(written) == set(ValidateParams.model_fields)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_blnk": 0.1}, "validate.max_blnk: unknown key; did you mean 'max_blank'?"),
        ({"severity__max_lekaed": "info"}, "unknown key; did you mean 'max_leaked'?"),
        ({"severity__max_leaked": "fatal"}, "'critical', 'warning' or 'info'"),
        ({"drift__measure": "mmd"}, "'psi' or 'ks'"),
        ({"drift__columns": ["heigth"]}, "validate.drift.columns.0"),
        ({"aspect": [3, 1]}, "aspect must rise"),
        ({"max_blank": 5}, "less than or equal to 1"),
        ({"height": 32}, "validate.height"),
    ],
)
def test_faults_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamsError) as caught:
        parse_params(content(**change))
    assert says in str(caught.value)


def test_a_severity_can_be_changed() -> None:
    params = parse_params(content(severity__max_blank="critical", height=[32, 512])).validate_
    assert params.severity.max_blank == "critical"
    assert params.severity.max_leaked == "critical"
    assert params.height == (32, 512)
