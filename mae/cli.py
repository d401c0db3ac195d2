"""The `mae` command: what a person does by hand with an artefact.

Every import that takes time is inside the command that needs it, so that `mae --help` is quick.
"""

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mae import __version__
from mae.errors import MaestroError

app = typer.Typer(
    help="Use what the pipeline made: encoders, autoencoders and sharded data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Look at sharded data.", no_args_is_help=True)
app.add_typer(data_app, name="data")


class FeatureName(StrEnum):
    cls = "cls"
    mean = "mean"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


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
def embed(
    model: Annotated[Path, typer.Option(help="encoder.onnx, as the export stage wrote it.")],
    images: Annotated[Path, typer.Option(help="A folder of images, searched to any depth.")],
    out: Annotated[Path, typer.Option(help="embeddings.parquet, or .npy with its keys beside it.")],
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    feature: Annotated[
        FeatureName, typer.Option(help="Class token, or mean of the patch tokens.")
    ] = FeatureName.cls,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where one works.")] = Device.auto,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode images.")] = 4,
) -> None:
    """Turn every image of a folder into a vector.

    Images that cannot be read are left out and listed in OUT.rejected.csv.
    """
    from mae.export.embed import embed_folder
    from mae.export.session import EncoderSession

    done = embed_folder(
        EncoderSession(model, device.value),
        images,
        out,
        feature=feature.value,
        batch=batch,
        workers=workers,
    )
    typer.echo(f"{done.images} images embedded in {out}", err=True)
    if done.rejected:
        typer.echo(f"{len(done.rejected)} left out, listed in {done.rejected_file}", err=True)


@app.command()
def reconstruct(
    checkpoint: Annotated[Path, typer.Option(help="A folder such as artifacts/pretrain.")],
    images: Annotated[Path, typer.Option(help="A folder of images, or one image.")],
    out: Annotated[Path, typer.Option(help="The picture to write, a .png.")],
    limit: Annotated[int, typer.Option(min=1, help="Images drawn, the first in order.")] = 8,
) -> None:
    """Draw original, masked image and reconstruction, one image a row."""
    from mae.report.reconstruct import reconstruct_images

    done = reconstruct_images(checkpoint, images, out, limit)
    typer.echo(f"{done.images} images drawn in {out}. {done.caption}", err=True)
    for one in done.rejected:
        typer.echo(f"left out {one.id}: {one.detail}", err=True)


@data_app.command("show")
def data_show(
    folder: Annotated[Path, typer.Argument(help="A sharded dataset, such as data/shards/images.")],
) -> None:
    """Print what a sharded dataset holds."""
    from mae.data.dataset import read_dataset_info
    from mae.report.data_summary import summarise

    summary = summarise(read_dataset_info(folder))
    _print_table(summary.facts)
    for one in summary.quarantined:
        _print_table([(f"  {one.reason}", f"{one.count}, for example {one.key}: {one.detail}")])


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
    _print_table(plan_of(checked, known))
    if known is None:
        typer.echo(f"{shards} is not there yet: shard the data to see learning rates and steps")


def _print_table(rows: list[tuple[str, str]]) -> None:
    width = max(18, *(len(name) for name, _ in rows))
    for name, value in rows:
        typer.echo(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
