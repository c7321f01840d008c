"""Steps of published vision models, as their packages write them."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import Net, follows, own_answer, relative_error

from secure_quant import reference
from secure_quant.errors import UnsupportedModule
from secure_quant.ir import ops
from secure_quant.quantizer import quantize

GENERATOR = torch.Generator().manual_seed(0)
IMAGE = torch.randn(64, 4, 8, 8, generator=GENERATOR)
ROWS = torch.randn(64, 6, 8, generator=GENERATOR)


def relative_logits(net, x):
    """HaloNet's positions: pads of values whose rows are several of each sample."""
    b, c, h, w = x.shape
    q = x.permute(0, 2, 3, 1).reshape(b * h, w, c)
    x = (q @ net.rel.weight.t()).reshape(-1, w, 2 * w - 1)
    x = functional.pad(x, [0, 1]).flatten(1)
    x = functional.pad(x, [0, w - 1]).reshape(-1, w + 1, 2 * w - 1)[:, :w, w - 1 :]
    return x.reshape(b, h, w, w).mean(1)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_pads_beside_a_merged_batch(mode):
    def forward(_, x):
        y = functional.pad(x.reshape(-1, 4, 8), (1, 2), mode=mode)
        return y.reshape(len(x), 8, 44).mean(1)

    follows(Net(forward), IMAGE.permute(0, 2, 1, 3).contiguous())
    if mode == "constant":
        follows(Net(relative_logits, rel=nn.Linear(4, 15)), IMAGE)


@pytest.mark.parametrize("size", [1e-5, 1e-7, 1e-12, 1e7])
def test_branches_of_very_different_size(size):
    """LayerScale as it is initialized: the sum's factors stay in int32."""

    def forward(net, x):
        return net.fc(torch.relu(net.a(x) + size * net.b(x)))

    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8), fc=nn.Linear(8, 3))
    follows(model, ROWS)


def test_sums_that_become_12_bits_have_fine_factors():
    """Steps of 12 bits are not lost in the ratio of two scales."""

    def forward(net, x):
        return net.fc(torch.relu(net.a(x) + x))

    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(8, 8), fc=nn.Linear(8, 3))
    x = ROWS[:, 0]
    graph = quantize(model, x, mode="weight-only")
    (add,) = (node for node in graph.nodes if type(node).__name__ == "Add")
    (f, g), (a, b) = add.factors, (graph.values[name].scale for name in add.inputs)
    assert abs(f / g / (a / b) - 1) < 1 / 8000
    assert relative_error(reference.run(graph, x.numpy()), own_answer(model, x)) < 0.02


def without_autocast(net, x):
    """EfficientViT's linear attention: full precision whatever is around it."""
    dtype = x.dtype
    q, k, v = net.qkv(x).chunk(3, -1)
    with torch.autocast(device_type=x.device.type, enabled=False), torch.no_grad():
        q, k, v = torch.relu(q).float(), torch.relu(k).float(), v.float()
        made = q @ (k.transpose(-1, -2) @ v)
    return net.out(made.to(dtype)).type_as(x)


def test_parts_in_full_precision():
    torch.manual_seed(0)
    follows(Net(without_autocast, qkv=nn.Linear(8, 24), out=nn.Linear(8, 4)), ROWS, 0.06)


def test_parts_in_few_bits_are_refused():
    def forward(net, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.fc(x).float()

    with pytest.raises(UnsupportedModule, match=r"wrap_with_autocast in .*leave autocast out"):
        quantize(Net(forward, fc=nn.Linear(8, 4)), ROWS)


@pytest.mark.parametrize(
    ("size", "kernel", "options"),
    [(8, 3, {"padding": 1}), (8, 3, {"padding": 1, "stride": 2}), ((8, 9), (2, 3), {}),
     (8, 2, {"dilation": 2, "stride": 2}), (8, 2, {"dilation": 3})],
)  # fmt: skip
def test_windows_that_overlap(size, kernel, options):
    """VOLO's outlook attention sums what its windows say of each place."""

    def forward(_, x):
        parts = functional.unfold(x, kernel, **options)
        return functional.fold(parts * parts.sigmoid(), size, kernel, **options)

    follows(Net(forward), torch.randn(64, 3, *(size if isinstance(size, tuple) else (size,) * 2)))


def test_windows_of_rows_of_a_sample():
    def forward(_, x):
        b, c, h, w = x.shape
        parts = functional.unfold(x.reshape(b * 2, c // 2, h, w), 3, padding=1).sigmoid()
        return functional.fold(parts, (h, w), 3, padding=1).reshape(b, c, h, w)

    follows(Net(forward), IMAGE)


def halo(_, x):
    """HaloNet's keys: windows that overlap, taken along one axis after the other."""
    x = functional.pad(x, (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2)
    return x.reshape(len(x), 4, 16, 16).permute(0, 2, 3, 1).sigmoid().mean(2)


@pytest.mark.parametrize(
    "forward",
    [halo, lambda _, x: functional.unfold(x, (2, 3), (2, 1), (0, 1), (1, 2)).tanh()],
)
def test_windows_are_places_along_an_axis(forward):
    """Not one long list of all places: of HaloNet that would be millions."""
    graph = follows(Net(forward), IMAGE)
    lists = [len(n.index) for n in graph.nodes if isinstance(n, ops.Gather)]
    assert max(lists, default=0) <= 16
