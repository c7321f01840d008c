"""Layers that passes write out in others compute what torch's own do, option by option; and what
they become is as small as it should be."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import Net, follows

from secure_quant.errors import UnsupportedModule
from secure_quant.ir import ops
from secure_quant.quantizer.capture import capture
from secure_quant.quantizer.passes import recurrent, rewrite


def same(model, shape, seed=0):
    """The rewritten float graph gives what the module gives; the graph."""
    torch.manual_seed(seed)
    x = torch.randn(5, *shape)
    model = model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.1, 0.4)
        graph = rewrite(capture(model, x[:2]))
        torch.testing.assert_close(graph(x.clone()), model(x), rtol=1e-4, atol=1e-4)
    return graph


def all_same(layers, shape, seed=0):
    """The same of many layers at once, side by side: one capture."""
    model = Net(
        lambda m, x: torch.cat([layer(x).reshape(len(x), -1) for layer in m.layers], 1),
        layers=nn.ModuleList(layers),
    )
    return same(model, shape, seed)


def targets(graph):
    return [
        str(node.target).split(".")[1] for node in graph.graph.nodes if "aten" in str(node.target)
    ]


TRANSPOSED = [
    options
    for options in itertools.product((1, 2, 3), (1, 2, 3), (0, 1, 2), (0, 1), (1, 2), (1, 2))
    if options[3] < max(options[1], options[4]) and options[2] <= options[4] * (options[0] - 1)
]
"""(kernel, stride, padding, output padding, dilation, groups) that torch takes."""


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_transposed_convolutions(kind):
    axes = 1 if kind is nn.ConvTranspose1d else 2
    layers = [
        kind(4, 6, kernel, stride, padding, extra, groups, seed % 2 == 0, dilation)
        for seed, (kernel, stride, padding, extra, dilation, groups) in enumerate(
            TRANSPOSED[:: 2 * axes]
        )
    ]
    made = all_same(layers, (4, 5, 4)[: axes + 1])
    assert targets(made).count(f"conv{axes}d") == len(layers)


def test_a_transposed_convolution_over_three_axes():
    same(nn.ConvTranspose3d(2, 3, (2, 3, 1), (1, 2, 2), (0, 1, 0), (0, 1, 1)), (2, 3, 4, 3))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3}, {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)},
        {"kernel_size": (3, 1, 1), "padding": (1, 0, 0), "stride": (2, 1, 1)},
        {"kernel_size": (3, 1, 1), "stride": 2}, {"kernel_size": 2, "dilation": 2, "groups": 2},
        {"kernel_size": (2, 3, 2), "padding": (1, 0, 2), "stride": (2, 1, 1), "bias": False},
        {"kernel_size": (2, 3, 4), "padding": "same"},
    ],
)  # fmt: skip
def test_convolutions_over_three_axes(options):
    made = same(nn.Conv3d(4, 6, **options), (4, 5, 6, 6))
    assert targets(made).count("conv2d") == 1


@pytest.mark.parametrize("spread", [1, 2, 3])
def test_padding_that_differs_by_side(spread):
    same(nn.Conv1d(3, 4, 4, padding="same", dilation=spread), (3, 12))
    same(nn.Conv2d(3, 4, (2, 3), padding="same", dilation=(spread, 1), groups=1), (3, 8, 9))


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)),
        (nn.ConvTranspose1d(4, 6, 3, 2), nn.BatchNorm1d(6)),
        (nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)),
    ],
)  # fmt: skip
def test_a_norm_goes_into_the_layer_before(layer, norm):
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    shape = (layer.in_channels, 4, 5, 4)[: layer.weight.ndim - 1]
    made = same(nn.Sequential(layer, norm), shape)
    assert sum("conv" in name for name in targets(made)) == 1


POOLS = [
    options
    for options in itertools.product(
        (2, 3), (1, 2, 3), (0, 1), (False, True), (False, True), (None, 3)
    )
    if options[2] <= options[0] // 2
]
"""(kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)"""


@pytest.mark.parametrize("axes", [2, 3])
def test_means_over_windows(axes):
    kind = nn.AvgPool2d if axes == 2 else nn.AvgPool3d
    all_same([kind(*options) for options in POOLS[:: 2 * axes - 3]], (2, 5, 7, 6)[: axes + 1])


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_maxima_over_windows(axes):
    kind = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1]
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    every = itertools.product((2, 3), (1, 2), (0, 1), (1, 2), (False, True))
    layers = [kind(**dict(zip(names, options, strict=True))) for options in every]
    all_same(layers, (2, 7, 6, 5)[: axes + 1])


def test_windows_chosen_by_the_size_of_the_result():
    flat, wide = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), [1, 2, 3, 4, (3, 5), (None, 2)]
    all_same([kind(size) for kind in flat for size in wide], (2, 6, 7))
    single, deep = (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), [1, 2, 3]
    all_same([kind(size) for kind in single for size in deep], (2, 7))
    cubes = (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)
    all_same([kind(size) for kind in cubes for size in deep], (2, 6, 4, 5))


RESIZED = [
    {"size": (9, 5)}, {"scale_factor": 2}, {"scale_factor": (1.5, 0.7)},
    {"size": (9, 5), "align_corners": True}, {"size": (3, 4), "antialias": True},
    {"scale_factor": 2.4, "recompute_scale_factor": True},
]  # fmt: skip


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("options", RESIZED, ids=str)
def test_resizing(mode, options):
    same(Net(lambda _, x: functional.interpolate(x, mode=mode, **options)), (2, 6, 7))


def test_a_mean_over_whole_windows_is_no_layer():
    flat = [nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(2, count_include_pad=False)]
    assert "linear" not in targets(all_same([*flat, nn.AdaptiveAvgPool2d(3)], (2, 6, 6)))
    assert "linear" not in targets(same(nn.AvgPool3d(2), (2, 4, 6, 6)))


RECURRENT = [
    (kind, layers, both, first)
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
    for layers, both, first in ((1, False, True), (2, True, False))
]


@pytest.mark.parametrize(("kind", "layers", "both", "first"), RECURRENT)
def test_recurrent_layers(kind, layers, both, first):
    layer = kind(3, 4, layers, bidirectional=both, batch_first=first, bias=layers == 1)

    def forward(model, x):
        y, state = model.a(x if first else x.transpose(0, 1))
        y = y if first else y.transpose(0, 1)
        h, c = state if kind is nn.LSTM else (state, state)
        return torch.cat([y.flatten(1), h.transpose(0, 1).flatten(1), c[-1]], 1)

    same(Net(forward, a=layer), (5, 3))


def test_states_that_are_given():
    """Learned, of another layer, of the input."""
    first, second = nn.LSTM(3, 4, batch_first=True), nn.LSTM(3, 4, batch_first=True)

    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = first, second
            self.h, self.c = (nn.Parameter(torch.randn(1, 1, 4)) for _ in range(2))

        def forward(self, x):
            start = tuple(v.expand(-1, x.shape[0], -1).contiguous() for v in (self.h, self.c))
            y, state = self.a(x[:, :3], start)
            return torch.cat([y, self.b(x[:, 3:], state)[0]], 1)

    same(Given(), (6, 3))
    cell = nn.GRUCell(3, 3)
    same(Net(lambda m, x: m.a(x[:, 1], m.a(x[:, 0], x[:, 2])), a=cell), (3, 3))
    projected = nn.LSTM(3, 5, proj_size=2, batch_first=True)
    same(Net(lambda m, x: m.a(x)[0][:, -1], a=projected), (4, 3))


def test_only_the_steps_that_are_read_are_joined():
    layer = nn.LSTM(3, 4, batch_first=True)
    made = same(Net(lambda m, x: m.a(x)[0][:, -1], a=layer), (5, 3))
    assert targets(made).count("cat") == 4  # of input and state, from the second step on


def test_sequences_that_are_too_long_are_refused(monkeypatch):
    monkeypatch.setattr(recurrent, "LONGEST", 4)
    with pytest.raises(UnsupportedModule, match="5 steps"):
        same(Net(lambda m, x: m.a(x)[0], a=nn.RNN(2, 1, batch_first=True)), (5, 2))


EINSUMS = [
    "bij,jk->bik", "bij,ijk->bik", "bij,ij->bij", "bij,ij->bi", "bij,ij->b", "bij->bj", "bij->bji",
    "bij,bij->bij", "bij,bkj->bik", "bij,bij->bi", "bij,bkj->bikj", "bij,jk,kl->bil",
    "bij,bkj,bkl->bil", "...ij,jk->...ik", "ij,bij->bi", "bij,k->bik", "bij,bi->bj",
]  # fmt: skip


@pytest.mark.parametrize("equation", EINSUMS)
def test_einsum(equation):
    size = {"i": 3, "j": 4, "k": 2, "l": 3}
    terms = equation.split("->")[0].split(",")

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            for number, term in enumerate(terms):
                if "b" not in term and "." not in term:
                    self.register_buffer(f"c{number}", torch.randn(*(size[c] for c in term)))

        def forward(self, x):
            made = []
            for number, term in enumerate(terms):
                inner = [c for c in term if c in size]
                whole = torch.cat([x] * 3, -1)[:, :36]
                count = 1
                for c in inner:
                    count *= size[c]
                data = whole[:, number : number + count].reshape(-1, *(size[c] for c in inner))
                made.append(getattr(self, f"c{number}", data))
            return torch.einsum(equation, *made)

    same(Product(), (13,))


CHOICES = [
    lambda x: torch.where(x > 0, x, -0.5 * x),
    lambda x: torch.where(x[:, :1] >= x[:, 1:], x[:, 1:], 2.0),
    lambda x: x * (x <= 0.3), lambda x: (x > 0).float() + (x < -1),
    lambda x: x.masked_fill(x < 0, 2), lambda x: (x != 0) * x, lambda x: ((x > 0) ^ (x < 1)) * x,
    lambda x: torch.where((x > 0) & (x < 1) | ~(x > -1), x, x.sin()),
    lambda x: torch.where((x == x.amax(-1, keepdim=True)), x, 0.0), lambda x: x.logical_not() + x,
    lambda x: torch.maximum(x[:, 0], x[:, 1]), lambda x: torch.minimum(x[:, :1], x),
    lambda x: torch.maximum(x, torch.tensor([0.1, -1, 0.5, 2.0])), lambda x: x.min(1).values,
    lambda x: x.clamp(x.mean(-1, keepdim=True), torch.tensor(1.0)), lambda x: x.amin((1, 2)),
    lambda x: torch.clamp_min(x, x.flip(1)), lambda x: torch.max(x, -x * 0.5),
]  # fmt: skip


def test_choices():
    all_same([Net(lambda _, x, choice=choice: choice(x)) for choice in CHOICES], (3, 4))


def test_a_choice_by_the_sign_of_one_value_is_one_table():
    def forward(model, x):
        h = model.a(x)
        return torch.where(h > 0, h.sin(), 0.1)

    torch.manual_seed(0)
    graph = follows(Net(forward, a=nn.Linear(6, 6)), torch.randn(64, 6), 0.15)
    kinds = [type(node) for node in graph.nodes]
    assert kinds == [ops.Input, ops.Linear, ops.Requantize, ops.Output]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.GroupNorm(2, 4), (4, 3)), (nn.GroupNorm(4, 4, affine=False), (4, 3, 3)),
        (nn.InstanceNorm1d(3, affine=True), (3, 6)), (nn.InstanceNorm3d(2), (2, 2, 3, 2)),
        (nn.LayerNorm((3, 4)), (2, 3, 4)), (nn.RMSNorm((3, 4)), (2, 3, 4)),
        (nn.LayerNorm((3, 4), bias=False), (3, 4)), (nn.LocalResponseNorm(2), (4, 3, 3)),
    ],
)  # fmt: skip
def test_norms(layer, shape):
    same(layer, shape)
