"""Attention as one operator of onnxruntime's own, in place of the twenty that torch writes."""

import logging
import math
from typing import Any

import numpy as np

LOG = logging.getLogger(__name__)

_DOMAIN = "com.microsoft"
# What lies between the product that makes queries, keys and values and where they are used.
_VIEWS = {"Mul", "Slice", "Split", "Gather", "Squeeze", "Transpose", "Reshape"}


def fuse_attention(model: Any, heads: int) -> int:
    """Replace every self-attention of a graph (an onnx_ir.Model) and return how many there were.

    What looks otherwise stays as it is, and computes the same.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    fused = 0
    for node in list(model.graph):
        if node.op_type == "Softmax" and _fuse(model.graph, node, heads):
            fused += 1
    if fused:
        model.opset_imports[_DOMAIN] = 1
        RemoveUnusedNodesPass()(model)
    return fused


def _fuse(graph: Any, softmax: Any, heads: int) -> bool:
    """softmax(q k' / sqrt(d)) v of one product's q, k, v -> Attention of what went into it."""
    import onnx_ir as ir

    scores, mixed = softmax.inputs[0].producer(), _only_user(softmax)
    if scores is None or mixed is None or (scores.op_type, mixed.op_type) != ("MatMul", "MatMul"):
        return False
    joined = _only_user(_only_user(mixed, "Transpose"), "Reshape")
    sources = {_source(value) for value in (*scores.inputs, mixed.inputs[1])}
    if joined is None or len(sources) != 1 or None in sources:
        return False
    (added,) = sources
    product, bias = added.inputs[0].producer(), added.inputs[1]
    weight = product.inputs[1]
    if weight.const_value is None or bias.const_value is None:
        return False
    width, three = weight.const_value.shape
    if three != 3 * width or not _scaled(scores, width // heads):
        return False
    attention = ir.Node(
        _DOMAIN,
        "Attention",
        [product.inputs[0], weight, bias],
        [ir.AttrInt64("num_heads", heads)],
        name=f"{softmax.name}_attention",
    )
    graph.insert_before(joined, attention)
    whole = joined.outputs[0]
    attention.outputs[0].name, attention.outputs[0].type = f"{whole.name}_attention", whole.type
    ir.convenience.replace_all_uses_with(whole, attention.outputs[0])
    return True


def _only_user(node: Any, op_type: str | None = None) -> Any:
    """Return the one node that uses the node's output, of that type; None if there is no such."""
    users = [] if node is None else list(node.outputs[0].consumers())
    if len(users) != 1 or (op_type is not None and users[0].op_type != op_type):
        return None
    return users[0]


def _source(value: Any) -> Any:
    """Return the Add of a linear layer that `value` is a view of, or None."""
    node = value.producer()
    while node is not None and node.op_type in _VIEWS:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Add":
        return None
    product = node.inputs[0].producer()
    return node if product is not None and product.op_type == "MatMul" else None


def _scaled(scores: Any, dim: int) -> bool:
    """Whether queries and keys are scaled by 1 / sqrt(dim) in all, as the operator does it."""
    scale = 1.0
    for value in scores.inputs:
        node = value.producer()
        while node is not None and node.op_type in _VIEWS:
            if node.op_type == "Mul":
                factor = node.inputs[1].const_value
                scale *= float(np.asarray(factor)) if factor is not None else math.nan
            node = node.inputs[0].producer()
    return math.isclose(scale, dim**-0.5, rel_tol=1e-5)
