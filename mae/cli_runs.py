"""`mae runs ...`: whether training runs are well, and what they wait for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mae.params import Params
    from mae.training.runs import RunState

runs_app = typer.Typer(help="Look at training runs, those going on too.", no_args_is_help=True)

_FOLDER = typer.Option(help="Where runs are kept.")
_LAST = 5  # interval lines shown of a run
_SHAPING = ("seed", "data", "model", "pretrain", "runtime")  # sections that concern a run
_ABSENT = "-"
_WAITS = 0.1  # share of the time without data from which on the data are what a run waits for


@runs_app.command("list")
def list_(folder: Annotated[Path, _FOLDER] = Path("runs")) -> None:
    """Print a line for every run, the most recent first: how far it is and how it is doing."""
    from mae.training.runs import list_runs

    runs = list_runs(folder)
    if not runs:
        typer.echo(f"{folder} holds no runs yet")
        return
    _print_columns(
        ["stage", "run", "step", "loss", "images/s", "waits", "left", "checkpoint", "health"],
        [_row(run) for run in runs],
    )


@runs_app.command("show")
def show(
    identity: Annotated[str, typer.Argument(help="The run's identity, or how it begins.")],
    folder: Annotated[Path, _FOLDER] = Path("runs"),
    params: Annotated[
        Path, typer.Option(help="The parameters that the run's are compared with.")
    ] = Path("params.yaml"),
) -> None:
    """Print what is known of a run: health, parameters, last figures, events, observations."""
    from mae.cli_data import print_table
    from mae.training.runs import find_run

    run = find_run(folder, identity)
    print_table(_facts(run))
    _show_parameters(run, params)
    _show_processes(run)
    _show_events(run)
    _show_observed(run)


def _row(run: "RunState") -> list[str]:
    from mae.training.journal import duration

    last = run.lines[-1] if run.lines else {}
    left = run.seconds_left
    return [
        run.stage,
        run.identity,
        f"{run.step} of {run.total}" if run.total is not None else str(run.step),
        _number(last.get("loss")),
        _number(last.get("images_per_second")),
        "" if last.get("wait_share") is None else f"{last['wait_share']:.0%}",
        "" if left is None else duration(left),
        "" if run.checkpoint is None else str(run.checkpoint),
        run.health(),
    ]


def _facts(run: "RunState") -> list[tuple[str, str]]:
    from mae.training.journal import duration

    _, _, step, *_, checkpoint, health = _row(run)
    facts = [("run", str(run.folder)), ("health", health), ("step", step)]
    if run.lines and run.about.get("steps_per_epoch"):
        epochs = run.step / run.about["steps_per_epoch"]
        facts.append(("epochs", f"{epochs:.1f}"))
    if run.seconds_left is not None:
        facts.append(("left", duration(run.seconds_left)))
    facts.append(("newest checkpoint", f"step {checkpoint}" if checkpoint else "none yet"))
    if run.about:
        where = f"process {run.about['pid']} on {run.about['host']}"
        facts.append(("started", f"{run.about['started']}, {where}"))
    facts.append(("waits for", _waits_for(run)))
    return facts


def _waits_for(run: "RunState") -> str:
    """Return what holds a run up, by its last interval."""
    from mae.training.runs import read_ranks

    if run.state not in ("running", "silent"):
        return "nothing: it is not running"
    last = {rank: lines[-1] for rank, lines in read_ranks(run.folder).items() if lines}
    waiting = {
        rank: share
        for rank, line in last.items()
        if (share := line.get("wait_share") or 0.0) >= _WAITS
    }
    if not waiting:
        return "its computations: data come fast enough"
    worst = max(waiting, key=lambda rank: waiting[rank])
    whose = f" of process {worst}" if len(last) > 1 else ""
    return (
        f"data, {waiting[worst]:.0%} of the time{whose}: more runtime.workers, a larger "
        "runtime.cache_mb or a faster disk would help"
    )


def _show_parameters(run: "RunState", path: Path) -> None:
    from mae.files import read_json
    from mae.params import read_params

    try:
        theirs = _flat(read_json(run.folder / "params.json"))
    except (OSError, ValueError):
        return
    if not path.exists():
        typer.echo(f"\nparameters: not compared, there is no {path}")
        return
    ours = _flat(_as_trained(read_params(path)))
    differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    rows = [[f"  {name}", _word(theirs, name), _word(ours, name)] for name in differing]
    known = [row for row in rows if row[1] != _ABSENT]
    typer.echo(f"\nparameters that differ from {path}" + ("" if rows else ": none"))
    if known:
        _print_columns(["", "run", path.name], known)
    if len(known) < len(rows):
        typer.echo(f"  and {len(rows) - len(known)} that the run's version did not have")


def _as_trained(params: "Params") -> dict[str, Any]:
    """Return the parameters as a run writes them down: with the method's own choices."""
    if params.model.method != "mae":
        from mae.model.methods import resolve_method

        params = params.model_copy(update={"model": resolve_method(params.model)})
    return params.model_dump(mode="json", by_alias=True)


def _flat(content: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Return the sections that concern a run as dotted names and values."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if not above and name not in _SHAPING:
            continue
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[above + name] = value
    return flat


def _word(values: dict[str, Any], name: str) -> str:
    return str(values[name]) if name in values else _ABSENT


def _show_processes(run: "RunState") -> None:
    from mae.training.runs import read_ranks

    ranks = {rank: lines for rank, lines in read_ranks(run.folder).items() if lines}
    for rank, lines in ranks.items():
        of = f" of process {rank}" if len(ranks) > 1 else ""
        typer.echo(f"\nlast lines{of}")
        shown = lines[-_LAST:] if rank == 0 else lines[-1:]
        columns = list(dict.fromkeys(name for line in shown for name in line))
        rows = [[_number(line.get(name)) for name in columns] for line in shown]
        _print_columns(["  " + columns[0], *columns[1:]], [["  " + r[0], *r[1:]] for r in rows])


def _show_events(run: "RunState") -> None:
    if run.events:
        typer.echo("\nevents")
    for event in run.events:
        more = {name: value for name, value in event.items() if name not in ("step", "event")}
        said = "; ".join(
            [str(more.pop("reason")), *_pairs(more)] if "reason" in more else _pairs(more)
        )
        typer.echo(f"  step {event['step']}: {event['event']}" + (f": {said}" if said else ""))


def _pairs(values: dict[str, Any]) -> list[str]:
    return [f"{name.replace('_', ' ')} {value}" for name, value in values.items()]


def _show_observed(run: "RunState") -> None:
    if not run.observed:
        return
    first, last = run.observed[0], run.observed[-1]
    typer.echo("\nobserved")
    rows = [
        [f"  {name}", _number(first.get(name)), _number(last[name])]
        for name in last
        if name != "step"
    ]
    _print_columns(["", f"step {first['step']}", f"step {last['step']}"], rows)


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_columns(header: list[str], rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
