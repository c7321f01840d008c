"""LayerNorm and RMSNorm on values as real models have them, against the user's float module."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from secure_quant import reference
from secure_quant.ir import ops
from secure_quant.quantizer import quantize
from secure_quant.quantizer.capture import capture
from secure_quant.quantizer.passes import rewrite, specialize

D = 96


class Scaled(nn.Module):
    """A norm of the input, whose features have other sizes."""

    def __init__(self, scale, norm):
        super().__init__()
        self.register_buffer("scale", scale)
        self.norm = norm

    def forward(self, x):
        return self.norm(x * self.scale)


class Stream(nn.Module):
    """Two branches summed, normalized, and read by a layer and by the next sum."""

    def __init__(self, scale, norm):
        super().__init__()
        size = len(scale)
        self.a, self.b, self.c = (nn.Linear(size, size) for _ in range(3))
        self.norm, self.last, self.out = norm, nn.LayerNorm(size), nn.Linear(size, 8)
        with torch.no_grad():
            for layer in (self.a, self.b):
                layer.weight.mul_(scale[:, None])
                layer.bias.mul_(scale)

    def forward(self, x):
        x = self.norm(self.a(x) + self.b(x))
        return self.out(self.last(x + self.c(x)))


class WrittenOut(nn.Module):
    """RMSNorm as Llama has it."""

    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", scale)
        self.weight, self.out = nn.Parameter(torch.rand(len(scale)) + 0.5), nn.Linear(len(scale), 8)

    def forward(self, x):
        x = x * self.scale
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.out(self.weight * (x * torch.rsqrt(variance + 1e-6)))


def features(places=(), size=1.0, count=D):
    scale = torch.ones(count)
    scale[list(places)] = size
    return scale


SCALES = {
    "even": features(),
    "one outlier": features([7], 100.0),
    "the last is the outlier": features([D - 1], 30.0),
    "some, of both signs": features([3, 40], 80.0) * features([3], -1.0),
    "a tenth of them": features(range(0, D, 10), 20.0),
    "tiny": features() * 1e-4,
    "all sizes": torch.exp(torch.linspace(-2, 2, D)),
}


def error(model, x, **options):
    torch.manual_seed(3)
    model = model.eval()
    with torch.no_grad():
        want = model(x).double().numpy()
    got = reference.run(quantize(model, x, **options), x.numpy())
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_outlier_features(name, norm):
    torch.manual_seed(0)
    x, eps = torch.randn(128, D), 1e-9
    # int8 inputs alone make up to 2 % of it. The input of an RMSNorm has one scale of 12 bits.
    assert error(Scaled(SCALES[name], norm(D, eps)), x) < (0.08 if norm is nn.RMSNorm else 0.05)
    assert error(Stream(SCALES[name], norm(D, eps)), x) < 0.08


def test_gain_and_bias_reach_every_reader():
    torch.manual_seed(0)
    norm = nn.LayerNorm(D)
    nn.init.normal_(norm.weight)  # negative ones too
    nn.init.normal_(norm.bias)
    assert error(Stream(SCALES["one outlier"], norm), torch.randn(128, D)) < 0.06


def test_rms_norm_written_out():
    torch.manual_seed(0)
    assert error(WrittenOut(SCALES["a tenth of them"]), torch.randn(128, D)) < 0.06


@pytest.mark.parametrize("mode", ["static", "weight-only"])
@pytest.mark.parametrize("count", [8, 1024, 4096])
def test_widths(count, mode):
    """weight-only takes what static takes: squares of 12 bits stay in int32."""
    torch.manual_seed(0)
    model = Scaled(features([1], 20.0, count), nn.LayerNorm(count))
    assert error(model, torch.randn(32, count), mode=mode) < 0.07


def test_rows_of_many_sizes():
    """A uniform table of 1/sqrt(v) would spend itself on the largest rows."""
    torch.manual_seed(0)
    x = torch.randn(128, D) * torch.exp(0.5 * torch.randn(128, 1))
    # What the int8 input alone costs, in float: the rest is ours.
    step = (x.max() - x.min()) / 255
    model = nn.LayerNorm(D)
    with torch.no_grad():
        want, rounded = model(x), model(torch.round(x / step) * step)
        inherent = float((rounded - want).norm() / want.norm())
    assert error(model, x) < 1.5 * inherent + 0.01


def test_specialized_graph_computes_the_same_in_float():
    """Scales move between weights, multipliers and factors of sums; the function stays."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(D)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    model, x = Stream(SCALES["one outlier"], norm).eval(), torch.randn(64, D)
    module = specialize(rewrite(capture(model, x[:2])), [x])
    with torch.no_grad():
        want, got = model(x), module(x)
    torch.testing.assert_close(tree_leaves(got)[0], want, rtol=1e-4, atol=1e-4)


def test_a_sum_before_a_norm_is_not_rounded():
    torch.manual_seed(0)
    graph = quantize(Stream(SCALES["one outlier"], nn.LayerNorm(D)).eval(), torch.randn(64, D))
    sums = [n for n in graph.nodes if isinstance(n, ops.Add)]
    assert any(isinstance(graph.by_name[n.inputs[0]], ops.Add) for n in sums)
    assert any(len(n.factors) == 2 * D for n in sums), "channels have scales of their own"


class LongAttention(nn.Module):
    def forward(self, x):
        return (x @ x.transpose(1, 2)).softmax(-1) @ x


@pytest.mark.parametrize(
    ("model", "shape"), [(nn.Linear(9000, 4), (9000,)), (LongAttention(), (300, 4))]
)
def test_weight_only_takes_what_static_takes(model, shape):
    """Where 12 bits of every input would not fit into the sums, there are fewer."""
    torch.manual_seed(0)
    if isinstance(model, nn.Linear):
        nn.init.uniform_(model.weight, 0.5, 1.0)
    x = torch.randn(16, *shape)
    assert error(model, x, mode="static") < 0.1
    assert error(model, x, mode="weight-only") < 0.05


class ReadTwice(nn.Module):
    """A stream that a normalization reads and another sum: it is rounded, to 12 bits."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(D, D), nn.Linear(D, D), nn.LayerNorm(D)

    def forward(self, x):
        x = x + self.a(x)
        return x + self.b(self.norm(x))


def test_a_stream_that_is_normalized_is_not_rounded():
    """What a LayerNorm of two branches reads: two int8 values, of which nothing is rounded before
    the result, but for the mean and the inverse root, one number a row each."""
    torch.manual_seed(4)
    graph = quantize(Stream(SCALES["even"], nn.LayerNorm(D)).eval(), torch.randn(64, D))
    made = [n for n in graph.nodes if isinstance(n, ops.Requantize)]
    assert all(
        max(n.table) - min(n.table) < 256 or graph.values[n.name].shape[-1] == 1 for n in made
    )
    squares = [n for n in graph.nodes if isinstance(n, ops.MatMul) and n.transpose_b]
    assert len(squares) == 2
    assert all(isinstance(graph.by_name[n.inputs[0]], ops.Reshape) for n in squares)
    products = [n for n in graph.nodes if isinstance(n, ops.Mul)]
    assert all(isinstance(graph.by_name[n.inputs[0]], ops.Add) for n in products)


def test_tables_to_12_bits_are_ramps_of_two_steps():
    """Which is what secret sharing sums up instead of looking it up, and no larger in a file."""
    torch.manual_seed(4)
    graph = quantize(ReadTwice().eval(), torch.randn(64, D))
    wide = [
        node for node in graph.nodes
        if isinstance(node, ops.Requantize) and graph.values[node.name].shape[-1] == D
        and max(node.table) - min(node.table) > 255
    ]  # fmt: skip
    assert wide
    for node in wide:
        assert set(np.diff(node.table)) <= {1, 2}
        assert set(np.diff(node.table[1:-1])) == {2}
        assert 1000 < len(node.table) <= 2049
