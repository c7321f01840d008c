"""What is rounded and not clipped, in both forms of ONNX."""

import numpy as np
import onnxruntime
import pytest
import torch

from conformance.sum_cases import rounded_and_not_clipped, rounded_at_the_output
from secure_quant import reference
from secure_quant.interop.onnx_export import feeds, packed, to_onnx
from secure_quant.interop.qdq_export import to_qdq
from secure_quant.ir import ops
from secure_quant.quantizer import quantize


@pytest.mark.parametrize("build", [rounded_and_not_clipped, rounded_at_the_output])
def test_the_same_integers(build):
    graph = build()
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    shape = graph.values[graph.input.name].shape
    q = np.random.default_rng(3).integers(-128, 128, (200, *shape)).astype(np.int8)
    q[:2] = np.array([-128, 127]).reshape(-1, *[1] * len(shape))
    made = dict(zip(["y"], session.run(None, feeds(graph, q)), strict=True))
    assert np.array_equal(packed(graph, made), reference.run_int(graph, q))


@pytest.mark.heavy
def test_a_branch_before_a_norm_for_devices():
    torch.manual_seed(2)
    layer = torch.nn.TransformerEncoderLayer(32, 2, 48, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    x = torch.randn(40, 6, 32)
    graph = quantize(model, x)
    assert sum(isinstance(node, ops.Rescale) for node in graph.nodes) == 2
    session = onnxruntime.InferenceSession(to_qdq(graph).SerializeToString())
    (made,) = session.run(None, {"x": x.numpy()})
    want = reference.run(graph, x.numpy())
    assert np.sqrt(np.mean((made - want) ** 2)) < 0.01 * np.sqrt(np.mean(want**2))
