"""An encoder or classifier as one ONNX graph: stored pixels in, features out, the rest inside."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae.errors import MaestroError
from mae.export.attention import fuse_attention
from mae.export.description import CLASSIFIER_OUTPUTS, INPUT, OUTPUTS, EncoderDescription
from mae.export.graph_files import save_graph
from mae.export.preprocessing import AnyGridEncoder, Resizer
from mae.model.encoder import Encoder, Features
from mae.model.heads import Classifier
from mae.pixels import PixelNormalizer, PixelStatistics

LOG = logging.getLogger(__name__)

_TALKATIVE = ("torch.onnx", "torch.export", "onnxscript")  # of progress and of deprecations
_TORCH_DTYPES = {8: torch.uint8, 16: torch.uint16}


class PixelEncoder(nn.Module):
    """uint8 or uint16 images (N, C, H, W) -> Features, float32: normaliser and encoder in one.

    resize: images of any height and width are resized to cover resize x the encoder's own and
    cropped in the middle; None: they are taken as they are.
    """

    outputs = OUTPUTS

    def __init__(
        self, encoder: Encoder, statistics: PixelStatistics, resize: float | None = None
    ) -> None:
        super().__init__()
        self.prepare = _preparation(encoder, statistics, resize)
        self.encoder = encoder

    def forward(self, images: Tensor) -> Features:
        return self.encoder(self.prepare(images))


class PixelClassifier(nn.Module):
    """uint8 or uint16 images (N, C, H, W) -> logits and probabilities, float32, each (N, K)."""

    outputs = CLASSIFIER_OUTPUTS

    def __init__(
        self, classifier: Classifier, statistics: PixelStatistics, resize: float | None = None
    ) -> None:
        super().__init__()
        self.prepare = _preparation(classifier.encoder, statistics, resize)
        self.classifier = classifier

    @property
    def encoder(self) -> Encoder:
        return self.classifier.encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier(self.prepare(images))
        return logits, logits.softmax(dim=1)


PixelModel = PixelEncoder | PixelClassifier


def _preparation(
    encoder: Encoder, statistics: PixelStatistics, resize: float | None
) -> nn.Sequential:
    steps: list[nn.Module] = [PixelNormalizer(statistics)]
    if resize is not None:
        a = encoder.architecture
        steps.insert(0, Resizer(a.height, a.width, resize, statistics.full_scale))
    return nn.Sequential(*steps)


def write_onnx(
    path: Path,
    model: PixelModel,
    about: EncoderDescription,
    opset: int,
    *,
    optimize: bool = False,
) -> None:
    """Write `model` to `path` with a dynamic N, and H and W as about.resolution says.

    optimize: attention becomes one operator of onnxruntime's own. Weights beyond the 2 GiB of one
    ONNX file go to `<name>.data` beside it. Raises MaestroError when torch cannot export the
    model at this opset.
    """
    import onnx_ir

    program = _trace(model.eval().cpu(), about, opset)
    _tidy(program.model, about, opset)
    if optimize:
        fused = fuse_attention(program.model, getattr(about.architecture, "heads", 0))
        LOG.debug("%s: %d attentions fused", path.name, fused)
    save_graph(onnx_ir.to_proto(program.model), path, about)


def _trace(model: PixelModel, about: EncoderDescription, opset: int) -> torch.onnx.ONNXProgram:
    example, shapes = _example(about)
    try:
        with quiet(*_TALKATIVE), torch.no_grad(), _any_grid(model.encoder, about):
            # strict: plain tracing would freeze N where the encoder asks for len().
            exported = torch.export.export(
                model, (), {INPUT: example}, dynamic_shapes={INPUT: shapes}, strict=True
            )
            program = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(about.outputs),
            )
    except RuntimeError as error:
        raise MaestroError(
            f"torch cannot export the encoder at export.opset {opset}: {_first_line(error)}"
        ) from error
    assert program is not None
    return program


def _example(about: EncoderDescription) -> tuple[Tensor, dict[int, Any]]:
    """Return images to trace with, and which of their dimensions are free.

    Two images, not one, and no two sides alike: the tracer takes a dimension of 1 for a constant,
    and equal ones for the same.
    """
    a, dim = about.architecture, torch.export.Dim
    shapes: dict[int, Any] = {0: dim("N")}
    height, width = a.height, a.width
    if about.resolution == "dynamic":
        shapes |= {2: a.patch[0] * dim("Hp"), 3: a.patch[1] * dim("Wp")}
        height, width = 3 * a.patch[0], 5 * a.patch[1]
    elif about.resolution == "resized":
        shapes |= {2: dim("H"), 3: dim("W")}
        height, width = a.height + 3, a.width + 7
    dtype = _TORCH_DTYPES[about.statistics.bit_depth]
    return torch.zeros(2, a.channels, height, width, dtype=dtype), shapes


@contextlib.contextmanager
def _any_grid(encoder: Encoder, about: EncoderDescription) -> Iterator[None]:
    """While the graph is made, let a transformer of free resolution work out its positions."""
    if about.resolution != "dynamic" or type(encoder) is not Encoder:
        yield
        return
    encoder.__class__ = AnyGridEncoder
    try:
        yield
    finally:
        encoder.__class__ = Encoder


def _tidy(graph: Any, about: EncoderDescription, opset: int) -> None:
    """Name what the graph (an onnx_ir.Model) shows, and take out what only the tracer needed."""
    written = graph.opset_imports[""]
    if written != opset:
        raise MaestroError(
            f"torch cannot export the encoder at export.opset {opset} (it fell back to {written}): "
            "set export.opset to 20, which is known to work"
        )
    graph.metadata_props.clear()
    _name_dimensions(graph.graph, about)
    for node in graph.graph:  # the tracer may give an inner value an output's name
        for value in node.outputs:
            if value.name in about.outputs and not value.is_graph_output():
                value.name = f"{value.name}_inside"
    # Stack traces: the same encoder exported from another folder would be another file.
    for node in graph.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    graph.graph.metadata_props.clear()


def _name_dimensions(graph: Any, about: EncoderDescription) -> None:
    """Call the free dimensions N, H, W, Hp and Wp, which the tracer names by its own symbols."""
    free = {INPUT: {0: "N"}, **{name: {0: "N"} for name in about.outputs}}
    if about.resolution != "fixed":
        free[INPUT] |= {2: "H", 3: "W"}
    if about.resolution == "dynamic" and about.kind == "encoder":
        free["patches"] |= {2: "Hp", 3: "Wp"}
    for value in (*graph.inputs, *graph.outputs):
        for axis, name in free[value.name].items():
            if isinstance(value.shape[axis], int):
                raise MaestroError(
                    f"torch froze {name} at {value.shape[axis]}: this version of it cannot export "
                    "the encoder"
                )
            value.shape[axis] = name
    # Shapes noted inside the graph still use the tracer's symbols, and nothing needs them.
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keep what these loggers warn of, and what is printed meanwhile, off the terminal."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
