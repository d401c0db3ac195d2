"""`mae embed`, `mae classify`, `mae search`: exported models over images of one's own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae.cli_options import DEVICE, Device
from mae.errors import Interrupted, ParamsError

if TYPE_CHECKING:
    from mae.export.search_picture import Answer
    from mae.export.streaming import Streamed


class FeatureName(StrEnum):
    cls = "cls"
    mean = "mean"


class Split(StrEnum):
    train = "train"
    val = "val"
    test = "test"


search_app = typer.Typer(help="Find the images that are most like others.", no_args_is_help=True)

_MODEL = typer.Option(
    help="The .onnx file, the folder it is in, or a registered name such as champion."
)
_IMAGES = typer.Option(
    help="A folder of images, searched to any depth, a zip or tar, or sharded data."
)
_SPLIT = typer.Option(help="Of sharded data, one split and not all.")
_BATCH = typer.Option(min=1, help="Images at a time.")
_WORKERS = typer.Option(min=1, help="Threads that decode images.")
_THREADS = typer.Option(min=0, help="Threads of the model on a CPU; 0: as onnxruntime sees fit.")
_TENSORRT = typer.Option(help="On a GPU, let TensorRT compile the model first: minutes, once.")
_GRAPH = typer.Option(help="On a GPU, record the kernels of a batch and replay them.")
_PIXELS = typer.Option(min=1, help="Images of more pixels are left out, undecoded.")

_Workers = Annotated[int, _WORKERS]
WORKERS = min(16, os.cpu_count() or 1)


def embed(
    model: Annotated[str, _MODEL],
    images: Annotated[str, _IMAGES],
    out: Annotated[Path, typer.Option(help="embeddings.parquet, or .npy with its keys beside it.")],
    batch: Annotated[int, _BATCH] = 32,
    feature: Annotated[
        FeatureName, typer.Option(help="Class token, or mean of the patch tokens.")
    ] = FeatureName.cls,
    split: Annotated[Split | None, _SPLIT] = None,
    device: Annotated[Device, DEVICE] = Device.auto,
    workers: _Workers = WORKERS,
    threads: Annotated[int, _THREADS] = 0,
    tensorrt: Annotated[bool, _TENSORRT] = False,
    cuda_graph: Annotated[bool, _GRAPH] = False,
    max_pixels: Annotated[int, _PIXELS] = 100_000_000,
) -> None:
    """Turn every image into a vector.

    Images that cannot be read are left out and listed in OUT.rejected.csv. A run that was stopped
    goes on where it was when the same command is given again.
    """
    from mae.export.embed import embed_images
    from mae.export.models import model_file
    from mae.export.session import EncoderSession

    session = EncoderSession(
        model_file(model),
        device.value,
        threads=threads,
        tensorrt=tensorrt,
        cuda_graph=cuda_graph,
        spinning=False,  # its threads would take the cores from those that decode
    )
    with _to_be_continued():
        done = embed_images(
            session,
            images,
            out,
            feature=feature.value,
            batch=batch,
            workers=workers,
            split=split and split.value,
            max_pixels=max_pixels,
        )
    _say(done, "embedded", out)


def classify(
    model: Annotated[str, _MODEL],
    images: Annotated[str, _IMAGES],
    out: Annotated[Path, typer.Option(help="predictions.csv, or .parquet.")],
    top: Annotated[int, typer.Option(min=1, help="Classes told of each image.")] = 5,
    batch: Annotated[int, _BATCH] = 32,
    split: Annotated[Split | None, _SPLIT] = None,
    device: Annotated[Device, DEVICE] = Device.auto,
    workers: _Workers = WORKERS,
    threads: Annotated[int, _THREADS] = 0,
    tensorrt: Annotated[bool, _TENSORRT] = False,
    cuda_graph: Annotated[bool, _GRAPH] = False,
    max_pixels: Annotated[int, _PIXELS] = 100_000_000,
) -> None:
    """Say the most probable classes of every image, and how probable they are.

    Images that cannot be read are left out and listed in OUT.rejected.csv. A run that was stopped
    goes on where it was when the same command is given again.
    """
    from mae.export.classify import classify_images
    from mae.export.models import CLASSIFIER_FILE, model_file
    from mae.export.session import ClassifierSession

    session = ClassifierSession(
        model_file(model, CLASSIFIER_FILE),
        device.value,
        threads=threads,
        tensorrt=tensorrt,
        cuda_graph=cuda_graph,
        spinning=False,  # its threads would take the cores from those that decode
    )
    with _to_be_continued():
        done = classify_images(
            session,
            images,
            out,
            top=top,
            batch=batch,
            workers=workers,
            split=split and split.value,
            max_pixels=max_pixels,
        )
    _say(done, "classified", out)


@contextmanager
def _to_be_continued() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted: the same command goes on where this one was") from None


def _say(done: "Streamed", verb: str, out: Path) -> None:
    typer.echo(f"{done.images} images {verb} in {out}", err=True)
    if done.resumed:
        typer.echo(f"{done.resumed} of them were done by an earlier run", err=True)
    if done.rejected:
        typer.echo(f"{done.rejected} left out, listed in {done.rejected_file}", err=True)
    typer.echo(
        f"{done.per_second:.1f} images/s; the model computed {done.busy:.0%} of the time", err=True
    )


# --- search -----------------------------------------------------------------------------------


@search_app.command("build")
def build(
    embeddings: Annotated[Path, typer.Argument(help="A .parquet that `mae embed` wrote.")],
    out: Annotated[Path, typer.Option(help="The folder to write the index to.")],
) -> None:
    """Build an index of embeddings that `mae search query` and `mae serve` search in."""
    from mae.export.search import build_index

    typer.echo(f"{build_index(embeddings, out)} images in the index {out}", err=True)


@search_app.command("query")
def query(
    index: Annotated[Path, typer.Option(help="A folder of `mae search build`.")],
    model: Annotated[str, _MODEL],
    image: Annotated[str, typer.Option(help="An image to search with, or a folder of them.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Images found for each.")] = 8,
    images: Annotated[
        str | None, typer.Option(help="What was embedded: where a picture's images come from.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A .png with the images found, or a .csv of their names.")
    ] = None,
    device: Annotated[Device, DEVICE] = Device.auto,
    workers: _Workers = WORKERS,
) -> None:
    """Print the images of an index that are most like an image, and draw them."""
    if out is not None and out.suffix not in (".png", ".csv"):
        raise ParamsError(f"--out {out} must end in .png or .csv")
    if out is not None and out.suffix == ".png" and images is None:
        raise ParamsError(f"--out {out} needs --images, the images that were embedded")

    from mae.export.listing import list_images
    from mae.export.models import model_file
    from mae.export.search import SearchIndex
    from mae.export.search_picture import draw_answers, search_images, write_rows
    from mae.export.session import EncoderSession

    searched = SearchIndex.open(index)
    session = EncoderSession(model_file(model), device.value)
    answers, rejected = search_images(session, searched, image, k, workers)
    _print_answers(answers)
    for one in rejected:
        typer.echo(f"left out {one.id}: {one.detail}", err=True)
    if out is None:
        return
    if out.suffix == ".csv":
        write_rows(answers, out)
    else:
        assert images is not None
        view = session.view()
        draw_answers(answers, list_images(images, view), view, out)
    typer.echo(f"written to {out}", err=True)


def _print_answers(answers: "list[Answer]") -> None:
    for answer in answers:
        typer.echo(answer.query.key)
        for rank, match in enumerate(answer.matches, start=1):
            typer.echo(f"{rank:>4}  {match.similarity:.4f}  {match.key}")
