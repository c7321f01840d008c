"""Small modules from a function, and the check that what comes of them is what the user wrote."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from torch import nn

from secure_quant import reference
from secure_quant.interop.onnx_export import feeds, to_onnx
from secure_quant.quantizer import quantize


class Net(nn.Module):
    """Layers by name, and a forward given as a function of (module, x)."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.call = forward

    def forward(self, x):
        return self.call(self, x)


class Of(nn.Module):
    """Layers by name, and a forward of (module, **inputs)."""

    def __init__(self, forward, **layers):
        super().__init__()
        torch.manual_seed(3)
        for name, layer in layers.items():
            self.add_module(name, layer())
        self.call = forward

    def forward(self, **given):
        return self.call(self, **given)


def trained(norm):
    """A BatchNorm whose statistics, factors and shifts are not the initial ones."""
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 1.1)
        if norm.affine:
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
    return norm


def own_answer(model, x):
    """What the user's module answers, in eval mode; nothing of ours is used."""
    with torch.no_grad():
        return model.eval()(x.clone()).double().numpy()


def relative_error(got, want):
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


def follows(model, x, bound=0.04, **options):
    """The graph of ``model``, once its answers are those of the user's own module within
    ``bound`` (relative, root mean square) and onnxruntime's integers are the reference's."""
    graph = quantize(model, x, **options)
    got, want = reference.run(graph, x.numpy()), own_answer(model, x)
    assert got.shape == want.shape
    assert relative_error(got, want) < bound
    q = np.random.default_rng(0).integers(-128, 128, (16, *graph.input.shape)).astype(np.int8)
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    assert np.array_equal(session.run(None, {"x": q})[0], reference.run_int(graph, q))
    return graph


def same_in_onnx(graph, given, count):
    """(the first ``count`` samples' integers, the reference's answers to them), once onnxruntime's
    are the same."""
    q = reference.quantize_input(graph, {name: x[:count] for name, x in given.items()})
    made = reference.run_int(graph, q)
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    assert np.array_equal(session.run(None, feeds(graph, q))[0].reshape(made.shape), made)
    return q, made
