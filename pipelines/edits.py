"""Neither dvc.yaml nor the parameters it names may change under a run.

DVC records the parameters that it finds when a stage has ended, whatever that stage began with:
after an edit meanwhile its results would stand in dvc.lock, and in the run-cache, under
parameters that they were not made with.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from mae.errors import MaestroError

_TEMPLATE = re.compile(r"\$\{\s*(?!item\b)([\w.]+)")

Stated = dict[str, Any]


class EditedError(MaestroError):
    """dvc.yaml or params.yaml changed while they were in use."""

    exit_code = 6


def stated(root: Path, stage: str | None = None) -> Stated:
    """Return name -> value of the parameters that `stage` depends on, None where there is none.

    Of the whole pipeline, where no stage is given, with dvc.yaml itself. What only dvc could tell,
    such as `data.${item.dataset}`, counts as the section that it stands in. A file that cannot be
    read has no values.
    """
    pipeline, params = _read(root / "dvc.yaml"), _read(root / "params.yaml")
    if stage is not None:
        entry = pipeline.get("stages", {}).get(stage.partition("@")[0])
        return {name: _value(params, name) for name in _named(entry)}
    names = set(_TEMPLATE.findall(yaml.safe_dump(pipeline)))
    for entry in pipeline.get("stages", {}).values():
        names |= _named(entry)
    return {"dvc.yaml": pipeline, **{name: _value(params, name) for name in names}}


def edited(before: Stated, after: Stated) -> list[str]:
    """Return the names that are not as they were."""
    return sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )


def demand_unedited(before: Stated, after: Stated) -> None:
    """Raise EditedError when anything that a stage depends on was changed while it ran."""
    if names := edited(before, after):
        raise EditedError(
            f"params.yaml was edited while this stage ran ({', '.join(names)}): its results are "
            "not recorded, since DVC would do so under the new values. Run it again for those, "
            "or undo the edit first: what was trained is found again"
        )


def _named(entry: Any) -> set[str]:
    """Return the parameters in params.yaml that a stage of dvc.yaml lists."""
    listed = entry.get("params", []) if isinstance(entry, dict) else []
    return {
        name.partition("${")[0].rstrip(".") for name in listed if isinstance(name, str) and name
    }


def _value(params: Any, name: str) -> Any:
    for part in name.split("."):
        params = params.get(part) if isinstance(params, dict) else None
    return params


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
