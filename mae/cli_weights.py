"""`mae weights ...`: weights of the MAE release, timm and HuggingFace, in and out."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mae.cli_data import print_table
from mae.errors import ParamsError

weights_app = typer.Typer(
    help="Bring weights in from the MAE release, timm or HuggingFace, and out to them.",
    no_args_is_help=True,
)


class Source(StrEnum):
    auto = "auto"
    reference = "reference"
    timm = "timm"
    huggingface = "huggingface"


class Goal(StrEnum):
    reference = "reference"
    timm = "timm"
    vit_mae = "vit_mae"
    vit = "vit"


class TargetName(StrEnum):
    pixels = "pixels"
    normalized_pixels = "normalized_pixels"


_WEIGHTS = typer.Argument(
    help="A .safetensors or torch file, or a folder with config.json and such a file."
)
_Height = Annotated[int | None, typer.Option(min=1, help="Of the images, where grids are unclear.")]
_Width = Annotated[int | None, typer.Option(min=1, help="Of the images.")]
_Heads = Annotated[int | None, typer.Option(min=1, help="Attention heads of the encoder.")]
_DecoderHeads = Annotated[int | None, typer.Option(min=1, help="Attention heads of the decoder.")]


@weights_app.command("import")
def import_(
    weights: Annotated[Path, _WEIGHTS],
    out: Annotated[Path, typer.Option(help="The folder to write, as artifacts/pretrain.")],
    source: Annotated[
        Source, typer.Option("--from", help="Whose weights; auto tells by their names.")
    ] = Source.auto,
    encoder_only: Annotated[bool, typer.Option("--encoder-only", help="No decoder.")] = False,
    mean: Annotated[
        str | None, typer.Option(help="Of each channel, pixels on 0 to 1: 0.485,0.456,0.406.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Deviation of each channel, likewise.")] = None,
    bit_depth: Annotated[int | None, typer.Option(help="Of the images: 8 or 16.")] = None,
    resize: Annotated[
        float | None,
        typer.Option(min=1, help="Images are to cover resize x (height, width), then are cropped."),
    ] = None,
    target: Annotated[
        TargetName | None, typer.Option(help="What the decoder predicts, where nothing says it.")
    ] = None,
    height: _Height = None,
    width: _Width = None,
    heads: _Heads = None,
    decoder_heads: _DecoderHeads = None,
) -> None:
    """Turn foreign weights into a folder that evaluation, export and reconstruct work on."""
    from mae.model.weights.importing import import_weights
    from mae.model.weights.shapes import Said

    if bit_depth not in (None, 8, 16):
        raise ParamsError(f"--bit-depth is 8 or 16, not {bit_depth}")
    said = Said(
        height=height,
        width=width,
        heads=heads,
        decoder_heads=decoder_heads,
        target=None if target is None else target.value,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        bit_depth=bit_depth,
        resize=resize,
    )
    found = import_weights(weights, out, said, source.value, encoder_only=encoder_only)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    a = found.shape.architecture
    what = "encoder and decoder" if found.shape.decoder else "encoder"
    typer.echo(
        f"{what} for {a.channels} x {a.height} x {a.width} (channels, height, width) in {out}",
        err=True,
    )


@weights_app.command("export")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A folder such as artifacts/pretrain.")],
    to: Annotated[Goal, typer.Option(help="Whose code is to read them.")],
    out: Annotated[
        Path, typer.Option(help="A .safetensors file (reference, timm) or a folder (vit_mae, vit).")
    ],
    encoder_only: Annotated[bool, typer.Option("--encoder-only", help="No decoder.")] = False,
) -> None:
    """Write weights as the MAE release, timm or transformers read them, and say how they do."""
    from mae.model.weights.exporting import export_weights

    done = export_weights(checkpoint, out, to.value, encoder_only=encoder_only)
    typer.echo(f"{done.path} written; read it with", err=True)
    typer.echo(done.usage)


@weights_app.command("inspect")
def inspect(
    weights: Annotated[Path, _WEIGHTS],
    height: _Height = None,
    width: _Width = None,
    heads: _Heads = None,
    decoder_heads: _DecoderHeads = None,
) -> None:
    """Say what network some weights are of, what is known of their training, and what is not."""
    from mae.model.weights.inspecting import inspect_weights
    from mae.model.weights.shapes import Said

    said = Said(height=height, width=width, heads=heads, decoder_heads=decoder_heads)
    print_table(inspect_weights(weights, said))


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ParamsError(f"{option} {text} is no list of numbers such as 0.5,0.5,0.5") from None
