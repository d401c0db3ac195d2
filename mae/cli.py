"""The `mae` command: what a person does by hand with an artefact.

Every import that takes time is inside the command that needs it, so that `mae --help` is quick.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from mae import __version__
from mae.cli_data import data_app, print_table
from mae.cli_embed import classify, embed, search_app
from mae.cli_export import export
from mae.cli_options import DEVICE, Device
from mae.cli_runs import runs_app
from mae.cli_serve import serve
from mae.cli_weights import weights_app
from mae.errors import MaestroError

app = typer.Typer(
    help="Use what the pipeline made: encoders, autoencoders and sharded data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")
app.add_typer(weights_app, name="weights")
app.add_typer(search_app, name="search")
for command in (export, embed, classify, serve):
    app.command()(command)


def main() -> None:
    """Run the command line; a fault of the user's is one sentence and its exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("mae").setLevel(logging.INFO)
    try:
        app()
    except MaestroError as error:
        typer.echo(f"mae: {error}", err=True)
        sys.exit(error.exit_code)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mae {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def reconstruct(
    checkpoint: Annotated[Path, typer.Option(help="A folder such as artifacts/pretrain.")],
    images: Annotated[Path, typer.Option(help="A folder of images, or one image.")],
    out: Annotated[Path, typer.Option(help="The picture to write, a .png.")],
    limit: Annotated[int, typer.Option(min=1, help="Images drawn, the first in order.")] = 8,
    worst: Annotated[
        int | None,
        typer.Option(
            min=1, help="Look at all images, list so many of the highest loss, and draw these."
        ),
    ] = None,
    device: Annotated[Device, DEVICE] = Device.auto,
) -> None:
    """Draw original, masked image, reconstruction and error, one image a row.

    With --worst the list of images that are reconstructed worst goes to the screen and to a .csv
    beside OUT: odd, broken or misplaced images tend to be among them.
    """
    from mae.report.reconstruct import reconstruct_images

    done = reconstruct_images(checkpoint, images, out, limit, worst, device.value)
    for rank, one in enumerate(done.worst, start=1):
        typer.echo(f"{rank:>4}  {one.loss:<10.4g}  {one.image.key}")
    if done.listing is not None:
        typer.echo(f"the worst of {done.seen} images, with their loss, in {done.listing}", err=True)
    typer.echo(f"{done.images} images drawn in {out}. {done.caption}", err=True)
    for rejected in done.rejected:
        typer.echo(f"left out {rejected.id}: {rejected.detail}", err=True)


@app.command()
def params(
    path: Annotated[Path, typer.Argument(help="The file to check.")] = Path("params.yaml"),
    shards: Annotated[
        Path, typer.Option(help="The sharded images that the steps are counted for.")
    ] = Path("data/shards/images"),
) -> None:
    """Check params.yaml and print what follows from it: patches, learning rates, steps."""
    from mae.params import read_params

    checked = read_params(path)
    typer.echo(f"{path} is valid")

    from mae.report.plan import plan_of, sharded

    known = sharded(shards)
    print_table(plan_of(checked, known))
    if known is None:
        typer.echo(f"{shards} is not there yet: shard the data to see learning rates and steps")


if __name__ == "__main__":
    main()
