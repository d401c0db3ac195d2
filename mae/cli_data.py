"""`mae data ...`: looking at sharded data, judging them, accepting them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae.errors import DataError

if TYPE_CHECKING:
    from mae.data.dataset import DatasetInfo

data_app = typer.Typer(help="Look at sharded data and judge them.", no_args_is_help=True)

_FOLDER = typer.Argument(help="A sharded dataset, such as data/shards/images.")
_REFERENCE = typer.Option(help="Folder of the profiles accepted last.")


@data_app.command("show")
def show(folder: Annotated[Path, _FOLDER]) -> None:
    """Print what a sharded dataset holds."""
    from mae.data.dataset import read_dataset_info
    from mae.report.data_summary import summarise

    summary = summarise(read_dataset_info(folder))
    print_table(summary.facts)
    for one in summary.quarantined:
        print_table([(f"  {one.reason}", f"{one.count}, for example {one.key}: {one.detail}")])


@data_app.command("check")
def check(
    path: Annotated[Path, typer.Argument(help="A sharded dataset, or a folder of them.")] = Path(
        "data/shards"
    ),
    params: Annotated[Path, typer.Option(help="The file with the limits.")] = Path("params.yaml"),
    reference: Annotated[Path, _REFERENCE] = Path("data/reference"),
) -> None:
    """Hold sharded data against the limits of params.yaml: what failed, the worst first.

    Leaves with exit code 3 when something critical failed.
    """
    from mae.data.validation.expectations import check_datasets
    from mae.params import read_params

    limits = read_params(params).validate_
    infos = _datasets_in(path)
    verdict = check_datasets(infos, limits, reference).verdict
    failed = verdict.worst_first()
    for finding in failed:
        typer.echo(f"{finding.severity:<8}  {finding.sentence()}")
    for info in infos:
        if info.skipped:
            typer.echo(f"{info.dataset}: not checked: {info.skipped}")
    passed = sum(finding.success for finding in verdict.findings)
    typer.echo(f"{passed} of {passed + len(failed)} checks passed")
    if not verdict.passed:
        raise typer.Exit(DataError.exit_code)


@data_app.command("inspect")
def inspect(
    folder: Annotated[Path, _FOLDER],
    out: Annotated[Path, typer.Option(help="The picture to write, a .png.")] = Path("inspect.png"),
    seed: Annotated[int, typer.Option(min=0, help="Another seed shows other images.")] = 0,
) -> None:
    """Draw what a sharded dataset looks like: images, histograms, classes, faults, copies."""
    from mae.data.dataset import read_dataset_info
    from mae.report.inspection import inspect_dataset

    print_table(inspect_dataset(read_dataset_info(folder), out, seed))
    typer.echo(f"drawn in {out}", err=True)


@data_app.command("accept")
def accept(
    validation: Annotated[Path, typer.Option(help="Where validation wrote its profiles.")] = Path(
        "data/validation"
    ),
    reference: Annotated[Path, _REFERENCE] = Path("data/reference"),
) -> None:
    """Accept the data validated last: later versions are compared with them."""
    from mae.data.validation.drift import accept as accept_profiles

    for path in accept_profiles(validation, reference):
        typer.echo(f"{path} written: commit it, so that others compare with the same data")


def _datasets_in(path: Path) -> list["DatasetInfo"]:
    """Read the dataset that `path` is, or those it holds."""
    from mae.data.dataset import read_dataset_info

    held = sorted(file.parent for file in path.glob("*/dataset.json"))
    return [read_dataset_info(folder) for folder in held or [path]]


def print_table(rows: list[tuple[str, str]]) -> None:
    width = max(18, *(len(name) for name, _ in rows))
    for name, value in rows:
        typer.echo(f"{name:<{width}}  {value}")
