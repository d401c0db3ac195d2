"""`mae export`: a pretrained or imported encoder as ONNX files, by hand."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Resolution(StrEnum):
    fixed = "fixed"
    dynamic = "dynamic"
    resized = "resized"


class Precision(StrEnum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    int8_static = "int8_static"


class ClassifierKind(StrEnum):
    none = "none"
    logistic = "logistic"
    finetuned = "finetuned"


def export(
    pretrained: Annotated[
        Path, typer.Option(help="A folder such as artifacts/pretrain, or imported weights.")
    ],
    data: Annotated[
        Path, typer.Option(help="Sharded images: those held out are what the files are judged on.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; replaced as a whole.")],
    params: Annotated[
        Path, typer.Option(help="Where sections export, evaluate and runtime are read from.")
    ] = Path("params.yaml"),
    precision: Annotated[
        list[Precision] | None, typer.Option(help="A file each, beside fp32; may be repeated.")
    ] = None,
    resolution: Annotated[
        Resolution | None,
        typer.Option(help="Images taken: of one height and width, whole patches, or any."),
    ] = None,
    classifier: Annotated[
        ClassifierKind | None, typer.Option(help="A second model, with the data's classes.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="A folder of what was measured, to go into the files.")
    ] = None,
) -> None:
    """Write an encoder as ONNX files that run without torch, each checked against torch.

    Options stand above what params.yaml says. When a file does not agree with torch, nothing is
    written and OUT stays as it was.
    """
    from mae.export.export import ABOUT, export_encoder
    from mae.files import read_json
    from mae.params import parse_params, read_params

    content = read_params(params).model_dump(mode="json", by_alias=True)
    if precision:
        wanted = [one.value for one in precision if one is not Precision.fp32]
        content["export"]["precisions"] = ["fp32", *dict.fromkeys(wanted)]
    if resolution is not None:
        content["export"]["resolution"] = resolution.value
    if classifier is not None:
        kind = None if classifier is ClassifierKind.none else classifier.value
        content["export"]["classifier"] = kind
    export_encoder(pretrained, data, out, parse_params(content, str(params)), results)
    found = read_json(out / ABOUT)
    for name, file in sorted(found["files"].items()):
        cosine = min(
            worst["min_cosine"] for outputs in file["parity"].values() for worst in outputs.values()
        )
        typer.echo(f"{out / name}: {file['mb']:.1f} MB, cosine to torch {cosine:.6f} at least")
    for precision_, reason in found["refused"].items():
        typer.echo(f"left out {precision_}: {reason}", err=True)
