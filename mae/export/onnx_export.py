"""The encoder as one ONNX graph: stored pixels in, features out, normalisation inside."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from mae.errors import MaestroError
from mae.export.description import INPUT, OUTPUTS, EncoderDescription
from mae.files import replacing_file
from mae.model.encoder import Encoder, Features
from mae.pixels import PixelNormalizer, PixelStatistics

# Protocol buffers end at 2 GiB; above this, weights lie beside the graph in <name>.data.
_ONE_FILE_BYTES = 1_900_000_000

_TORCH_DTYPES = {8: torch.uint8, 16: torch.uint16}


class PixelEncoder(nn.Module):
    """uint8 or uint16 images (N, C, H, W) -> Features, float32: normaliser and encoder in one."""

    def __init__(self, encoder: Encoder, statistics: PixelStatistics) -> None:
        super().__init__()
        self.normalize = PixelNormalizer(statistics)
        self.encoder = encoder

    def forward(self, images: Tensor) -> Features:
        return self.encoder(self.normalize(images))


def write_onnx(path: Path, model: PixelEncoder, about: EncoderDescription, opset: int) -> None:
    """Write `model` to `path` with a dynamic N and the fixed H x W of its architecture.

    Weights beyond the 2 GiB of one ONNX file go to `<name>.data` beside it. Raises MaestroError
    when torch cannot export the encoder at this opset.
    """
    program = _trace(model.eval().cpu(), about, opset)
    _tidy(program.model, about, opset)
    path.parent.mkdir(parents=True, exist_ok=True)
    if _weight_bytes(model) > _ONE_FILE_BYTES:
        # The graph names its weights' file, so neither can be renamed afterwards.
        _save(program, path, external_data=True)
    else:
        with replacing_file(path) as temporary:
            _save(program, temporary, external_data=False)


def _save(program: torch.onnx.ONNXProgram, path: Path, external_data: bool) -> None:
    with _quiet():
        program.save(path, external_data=external_data)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise MaestroError(f"torch wrote a graph that onnx refuses: {_first_line(error)}") from None


def _trace(model: PixelEncoder, about: EncoderDescription, opset: int) -> torch.onnx.ONNXProgram:
    a = about.architecture
    # Two images, not one: the tracer takes a dimension of 1 for a constant.
    dtype = _TORCH_DTYPES[about.statistics.bit_depth]
    example = torch.zeros(2, a.channels, a.height, a.width, dtype=dtype)
    shapes = {INPUT: {0: torch.export.Dim("N")}}
    try:
        with _quiet(), torch.no_grad():
            # strict: plain tracing would freeze N where the encoder asks for len().
            exported = torch.export.export(
                model, (), {INPUT: example}, dynamic_shapes=shapes, strict=True
            )
            program = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
            )
    except RuntimeError as error:
        raise MaestroError(
            f"torch cannot export the encoder at export.opset {opset}: {_first_line(error)}"
        ) from error
    assert program is not None
    return program


def _tidy(graph: Any, about: EncoderDescription, opset: int) -> None:
    """Describe the graph (an onnx_ir.Model), and take out what only the tracer needed."""
    written = graph.opset_imports[""]
    if written != opset:
        raise MaestroError(
            f"torch cannot export the encoder at export.opset {opset} (it fell back to {written}): "
            "set export.opset to 20, which is known to work"
        )
    graph.producer_name, graph.producer_version = "maestro-mae", about.version
    graph.doc_string = about.preprocessing
    graph.metadata_props.clear()
    graph.metadata_props.update(about.to_metadata())
    _name_the_batch(graph.graph)
    for node in graph.graph:  # the tracer may give an inner value an output's name
        for value in node.outputs:
            if value.name in OUTPUTS and not value.is_graph_output():
                value.name = f"{value.name}_inside"
    # Stack traces: the same encoder exported from another folder would be another file.
    for node in graph.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    graph.graph.metadata_props.clear()


def _name_the_batch(graph: Any) -> None:
    """Call the dynamic dimension N, which the tracer names after its own symbol."""
    symbol = graph.inputs[0].shape[0]
    if isinstance(symbol, int):
        raise MaestroError(
            f"torch froze the batch at {symbol}: this version of it cannot export the encoder"
        )
    for value in (*graph.inputs, *graph.outputs):
        value.shape[0] = "N"
    # Shapes noted inside the graph still use the tracer's symbol, and nothing needs them.
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _weight_bytes(model: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and deprecation notes off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
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
