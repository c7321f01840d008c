"""Dynamic mode: scales of activations chosen for each sample at run time."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from conformance.executors import He
from secure_quant import reference
from secure_quant.errors import OpNotSupported
from secure_quant.interop.onnx_export import to_onnx
from secure_quant.ir import artifact, ops
from secure_quant.mpc.protocol.bundle import split
from secure_quant.quantizer import quantize
from secure_quant.quantizer.zoo import accuracy


def floats(model, x):
    with torch.no_grad():
        return model(torch.as_tensor(x)).numpy()


def relative_error(got, want):
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


def torch_dynamic(model):
    """torch.ao's own dynamic quantization, int8 weights and activations of Linear alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.ao.quantization.quantize_dynamic(model, dtype=torch.qint8)


def layers(graph):
    return [n for n in graph.nodes if isinstance(n, ops.Conv2d | ops.Linear)]


@pytest.mark.skipif(
    not set(torch.backends.quantized.supported_engines) - {"none"}, reason="torch without int8"
)
def test_mlp_is_at_least_as_close_to_float_as_torch_ao(flat):
    model, data = flat
    want = floats(model, data.test_x)
    ours = reference.run(quantize(model, data.train_x[:256], mode="dynamic"), data.test_x)
    theirs = floats(torch_dynamic(model), data.test_x)
    assert relative_error(ours, want) < 1.5 * relative_error(theirs, want)
    assert abs(accuracy(ours, data.test_y) - accuracy(want, data.test_y)) <= 0.0051


def test_convolutions_are_quantized_too_where_torch_skips_them(images):
    model, data = images
    theirs = [type(m).__name__ for m in torch_dynamic(model).children()]
    assert theirs[:2] == ["Conv2d", "Conv2d"]
    assert type(torch_dynamic(model).conv1) is nn.Conv2d
    graph = quantize(model, data.train_x[:256], mode="dynamic")
    for node in layers(graph):
        assert graph.weight(node).dtype == np.int8
        x = graph.values[node.inputs[0]].range
        assert (x.lo, x.hi) == (-128, 127)
    scaled = {n.inputs[0] for n in graph.nodes if isinstance(n, ops.Rescale) and len(n.inputs) == 2}
    assert scaled == {n.name for n in layers(graph)[1:]}
    want, got = floats(model, data.test_x), reference.run(graph, data.test_x)
    assert relative_error(got, want) < 0.02
    assert abs(accuracy(got, data.test_y) - accuracy(want, data.test_y)) <= 0.0051


def test_samples_far_from_calibration_keep_their_precision():
    """A net without bias is homogeneous: behind its first layer, inputs 20 times smaller than
    those calibrated with cost a static scale most of its 8 bits, a run-time scale nothing."""
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)
    )
    for layer in model[2:]:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        model[0].bias.zero_()
    rng = np.random.default_rng(5)
    calibration = rng.normal(size=(256, 32)).astype(np.float32)
    few = np.zeros((64, 32), np.float32)  # few features: the input itself stays well rounded
    few[:, 0] = rng.choice([-1.0, 1.0], 64) * rng.uniform(0.1, 0.3, 64)
    errors = {}
    for mode in ("static", "dynamic"):
        graph = quantize(model, calibration, mode=mode)
        seen = reference.quantize_input(graph, few).astype(np.float32) - graph.input.zero_point
        want = floats(model, seen * np.float32(graph.input.scale))
        errors[mode] = relative_error(reference.run(graph, few), want)
    assert errors["dynamic"] < 0.02 < errors["static"]


def test_samples_of_a_batch_do_not_feel_each_other(flat):
    model, data = flat
    graph = quantize(model, data.train_x[:64], mode="dynamic")
    q = reference.quantize_input(graph, data.test_x[:5])
    alone = np.concatenate([reference.run_int(graph, q[i : i + 1]) for i in range(5)])
    assert np.array_equal(reference.run_int(graph, q), alone)


def test_homomorphic_encryption_equals_the_reference(images):
    model, data = images
    graph = quantize(model, data.train_x[:64], mode="dynamic")
    q = reference.quantize_input(graph, data.test_x[:2])
    got = He("latency").prepare(graph).run(q)
    for name, value in reference.trace(graph, q).items():
        assert np.array_equal(got[name], value), name


@pytest.mark.parametrize("fixture", ["flat", "images", "rows"])
def test_model_file_keeps_every_integer(fixture, request):
    model, data = request.getfixturevalue(fixture)
    graph = quantize(model, data.train_x[:64], mode="dynamic")
    again = artifact.decode(artifact.encode(graph))
    assert again.nodes == graph.nodes
    assert again.hash == graph.hash


def test_attention_has_run_time_scales_in_front_of_its_layers(rows):
    model, data = rows
    graph = quantize(model, data.train_x[:256], mode="dynamic")
    assert sum(isinstance(n, ops.DynamicQuantize) for n in graph.nodes) >= 5
    want, got = floats(model, data.test_x), reference.run(graph, data.test_x)
    assert relative_error(got, want) < 0.02


def test_secret_sharing_refuses_by_name_and_says_what_to_use(flat):
    model, data = flat
    graph = quantize(model, data.train_x[:64], mode="dynamic")
    with pytest.raises(OpNotSupported, match="depends on the secret input") as caught:
        split(graph)
    assert "static" in str(caught.value)
    with pytest.raises(OpNotSupported, match="static"):
        to_onnx(graph)
