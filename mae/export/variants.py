"""An exported float32 graph in fewer bits: half precision, or integers of eight."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from mae.export.description import INPUT, EncoderDescription
from mae.export.graph_files import save_graph
from mae.export.half import half_precision
from mae.export.onnx_export import quiet

_PRODUCTS = {"MatMul", "Gemm", "Conv", "Attention"}
# Of every value's distribution on the images of calibration; the rest are outliers, which would
# cost all others a part of their 8 bits.
_PERCENTILE = 99.999

# Scales of their own for every output of a layer. Weights of 7 bits: processors with AVX2 alone add
# products in pairs, of which two of 8 bits would overflow without a word.
_OPTIONS: dict[str, Any] = {"per_channel": True, "reduce_range": True}


def write_half(source: Path, path: Path, about: EncoderDescription) -> None:
    """Write the float32 graph `source` to `path` with weights and arithmetic in float16."""
    model = onnx.load(source)
    save_graph(half_precision(model, _weighed(model)[0]), path, replace(about, precision="fp16"))


def write_int8(
    source: Path, path: Path, about: EncoderDescription, keep_float: Sequence[str]
) -> None:
    """Write `source` to `path` with products by weights in 8 bits, scales found while running.

    keep_float: parts whose products stay in float32, as in ExportParams.
    """
    from onnxruntime.quantization import quantize_dynamic

    def quantize(model: onnx.ModelProto, made: Path) -> None:
        quantize_dynamic(
            model, made, nodes_to_exclude=_left_alone(model, about, keep_float), **_OPTIONS
        )

    save_graph(_quantized(source, quantize), path, replace(about, precision="int8"))


def write_int8_static(
    source: Path,
    path: Path,
    about: EncoderDescription,
    keep_float: Sequence[str],
    images: Sequence[NDArray],
) -> None:
    """Write `source` to `path` with products by weights in 8 bits, scales taken from `images`.

    source: a graph whose attention is not one operator, which this way of 8 bits would leave
    alone. images: each (1, C, H, W), as the graph takes them.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    def quantize(model: onnx.ModelProto, made: Path) -> None:
        quantize_static(
            model,
            made,
            _Images(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.Percentile,
            nodes_to_exclude=_left_alone(model, about, keep_float),
            extra_options={"CalibPercentile": _PERCENTILE, "CalibStridedMinMax": 1},
            **_OPTIONS,
        )

    save_graph(_quantized(source, quantize), path, replace(about, precision="int8_static"))


def _quantized(source: Path, quantize: Callable[[onnx.ModelProto, Path], None]) -> onnx.ModelProto:
    model = onnx.load(source)
    # Its way of saying that there is nothing to simplify before, without which it warns.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory(prefix="maestro-int8-") as folder:
        made = Path(folder) / "made.onnx"
        with quiet("root"):  # it tells of every value that it leaves alone
            quantize(model, made)
        return onnx.load(made)


class _Images:
    """Images one by one, as onnxruntime's calibration asks for them."""

    def __init__(self, images: Sequence[NDArray]) -> None:
        self._images = images
        self._rest = iter(images)

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rest = iter(self._images[start_index:end_index])

    def get_next(self) -> dict[str, NDArray] | None:
        image = next(self._rest, None)
        return None if image is None else {INPUT: image}


# --- which product belongs to which part ----------------------------------------------------------


def _left_alone(
    model: onnx.ModelProto, about: EncoderDescription, keep_float: Sequence[str]
) -> list[str]:
    """Return the names of the products that stay as they are: of parts that are to, and those
    that multiply by no weights."""
    weighed = _weighed(model)
    kept = [
        name for name, parts in zip(weighed, _parts(about), strict=False) if parts & set(keep_float)
    ]
    others = [node.name for node in model.graph.node if node.op_type in _PRODUCTS]
    return kept + [name for name in others if name not in weighed]


def _weighed(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that multiply by float32 weights, in order."""
    weights = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1
    }
    return [
        node.name
        for node in model.graph.node
        if node.op_type in _PRODUCTS and weights & set(node.input[1:])
    ]


def _parts(about: EncoderDescription) -> list[set[str]]:
    """Return the parts that each product belongs to, in order: patches, then four in each block.

    Names would not do: of biases that are equal, as when all are zero, one serves for all.
    """
    depth = getattr(about.architecture, "depth", 0)
    parts = [{"patches"}]
    for block in range(depth):
        places = {"first_block": block == 0, "last_block": block == depth - 1}
        here = {name for name, true in places.items() if true}
        parts += [here | {"attention"}] * 2 + [here | {"mlp"}] * 2
    return parts
