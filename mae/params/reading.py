"""Reading params.yaml: every fault in one error, a misspelt key with the nearest that exists."""

import difflib
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from mae.errors import ParamsError
from mae.params.sections import Params


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: 1e-4 is a number here, as it is for DVC, and not a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def read_params(path: Path | str = "params.yaml") -> Params:
    """Read and check params.yaml. Raises ParamsError with every fault found."""
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist: run from the root of the project") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path} must hold sections such as 'data:' and 'model:'")
    return parse_params(content, str(path))


def parse_params(content: dict[str, Any], origin: str = "params") -> Params:
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        faults = "\n".join(f"  {_explain(fault, content)}" for fault in error.errors())
        raise ParamsError(f"{origin} has faults:\n{faults}") from None


def _explain(fault: Any, content: dict[str, Any]) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
        return f"{key}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{key}: missing"
    message = fault["msg"].removeprefix("Value error, ")
    value = fault["input"]
    return f"{key}: {message}" + ("" if isinstance(value, dict) else f" (it is {value!r})")


def _known_keys(location: list[str]) -> list[str]:
    section: type[BaseModel] = Params
    for part in location:
        if not part.isdigit():
            section = _section_of(_fields(section)[part].annotation)
    return list(_fields(section))


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _section_of(annotation: Any) -> type[BaseModel]:
    """Return the section that a field holds, alone or inside a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(_section_of(part) for part in get_args(annotation))
