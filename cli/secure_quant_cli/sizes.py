"""Sizes of a model, as stored and as it would be in float32."""

from __future__ import annotations

from secure_quant.ir import Graph, ops

__all__ = ["float_bytes", "parameter_count", "weight_bytes"]


def parameter_count(node: ops.Node) -> int:
    """Weights and biases of one node."""
    if isinstance(node, ops.Linear):
        return node.out_features * (node.in_features + node.bias)
    if isinstance(node, ops.Conv2d):
        fan_in = node.in_channels // node.groups * node.kernel[0] * node.kernel[1]
        return node.out_channels * (fan_in + node.bias)
    if isinstance(node, ops.Embedding):
        return node.rows * node.width
    return 0


def float_bytes(graph: Graph) -> int:
    """Bytes of the same parameters as float32."""
    return 4 * sum(parameter_count(node) for node in graph.nodes)


def weight_bytes(graph: Graph) -> tuple[int, int]:
    """Bytes of the weights in the model file, codebooks included, and as float32."""
    from secure_quant.ir.artifact import encode, read_tensors

    tensors, _ = read_tensors(encode(graph))
    kinds = (".weight", ".codes", ".codebook")
    stored = sum(array.nbytes for name, array in tensors.items() if name.endswith(kinds))
    linear = [
        node for node in graph.nodes if isinstance(node, ops.Linear | ops.Conv2d | ops.Embedding)
    ]
    return stored, sum(4 * graph.weight(node).size for node in linear)
