"""A float32 graph with weights and arithmetic in float16, pixels and outputs apart.

onnxruntime's own converter passes even what it is told to leave alone through float16 on the way,
whose largest number, 65504, lies below that of a 16-bit pixel.
"""

from typing import Any

import numpy as np
import onnx


def half_precision(model: onnx.ModelProto, first: str) -> onnx.ModelProto:
    """Return the graph in float16 from node `first` on, the first to multiply by weights.

    What leads there, from pixels to normalised ones, and the outputs stay float32.
    """
    import onnx_ir as ir

    made = ir.from_proto(model)
    nodes = {node.name: node for node in made.graph}
    pixels = nodes[first].inputs[0]
    before = _leading_to(pixels)
    for node in made.graph:
        if node in before:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT:
                node.replace_input_with(index, _half_of(made.graph, value))
        if node.op_type == "Cast" and node.attributes["to"].value == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
    _cast_where_it_begins(made.graph, pixels, before)
    _cast_outputs(made.graph)
    for value in list(made.graph.initializers.values()):
        if not value.uses():
            del made.graph.initializers[str(value.name)]
    for node in made.graph:  # types noted for float32 are wrong now, and nothing needs them
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None
    return ir.to_proto(made)


def _leading_to(value: Any) -> set[Any]:
    """Return the nodes whose results `value` is made of."""
    found: set[Any] = set()
    rest = [value.producer()]
    while rest:
        node = rest.pop()
        if node is not None and node not in found:
            found.add(node)
            rest += [one.producer() for one in node.inputs if one is not None]
    return found


def _half_of(graph: Any, value: Any) -> Any:
    """Return an initializer in float16 with the numbers of `value`, made when first asked for."""
    import onnx_ir as ir

    name = f"{value.name}.half"
    if name not in graph.initializers:
        tensor = ir.tensor(value.const_value.numpy().astype(np.float16), name=name)
        graph.register_initializer(ir.Value(name=name, const_value=tensor))
    return graph.initializers[name]


def _cast(value: Any, to: Any, name: str) -> Any:
    import onnx_ir as ir

    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", to)], name=f"{name}_cast")
    node.outputs[0].name = name
    return node


def _cast_where_it_begins(graph: Any, pixels: Any, before: set[Any]) -> None:
    import onnx_ir as ir

    users = [use for use in pixels.uses() if use.node not in before]
    cast = _cast(pixels, ir.DataType.FLOAT16, f"{pixels.name}_half")
    graph.insert_after(pixels.producer(), cast)
    for use in users:
        use.node.replace_input_with(use.idx, cast.outputs[0])


def _cast_outputs(graph: Any) -> None:
    import onnx_ir as ir

    for index, output in enumerate(list(graph.outputs)):
        name, shape = output.name, output.shape
        output.name = f"{name}_half"
        cast = _cast(output, ir.DataType.FLOAT, name)
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), shape
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]
