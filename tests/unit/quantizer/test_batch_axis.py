"""Forwards that move, merge or split the batch axis, and bring it back."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import Net, follows

from conformance.executors import He, Mpc
from secure_quant import reference
from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer import quantize


def samples(*shape):
    return torch.randn(64, *shape, generator=torch.Generator().manual_seed(1))


def windows(x, size=2):
    """[b, h, w, c] -> [b * windows, size * size, c]."""
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)


def whole(x, h, w, size=2):
    """The way back."""
    x = x.view(-1, h // size, w // size, size, size, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, x.shape[-1])


def attention(net, x, heads=2, bias=None):
    b, n, c = x.shape
    q, k, v = net.qkv(x).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
    scores = q * 0.5 @ k.transpose(-2, -1)
    if bias is not None:
        groups = bias.shape[0]
        scores = scores.view(b // groups, groups, heads, n, n) + bias.unsqueeze(1).unsqueeze(0)
        scores = scores.view(-1, heads, n, n)
    return net.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


def swin(net, x):
    x = x.permute(0, 2, 3, 1)
    x = x + whole(attention(net, windows(net.norm(x))), 4, 4)
    x = torch.roll(x, (-1, -1), (1, 2))
    mask = torch.zeros(4, 4, 4)
    mask[3, :2, 2:], mask[3, 2:, :2] = -100.0, -100.0
    x = x + whole(attention(net, windows(net.norm(x)), bias=mask), 4, 4)
    return torch.roll(x, (1, 1), (1, 2)).mean((1, 2))


def grid(net, x):
    """MaxViT's grids: every second place, as rows."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, 2, h // 2, 2, w // 2).permute(0, 3, 5, 2, 4, 1).reshape(-1, 4, c)
    x = attention(net, net.norm(x)).reshape(b, h // 2, w // 2, 2, 2, c)
    return x.permute(0, 5, 3, 1, 4, 2).reshape(b, c, h, w).flatten(1)


def patches(net, x):
    """MobileViT: patches beside the batch, pixels of a patch apart."""
    b, c, h, w = x.shape
    x = x.reshape(b * c * h // 2, 2, w // 2, 2).transpose(1, 2)
    x = x.reshape(b, c, 4, 4).transpose(1, 3).reshape(b * 4, 4, c)
    x = functional.scaled_dot_product_attention(x[:, None], x[:, None], net.norm(x)[:, None])
    x = x[:, 0].contiguous().view(b, 4, 4, c).transpose(1, 3)
    x = x.reshape(b * c * h // 2, w // 2, 2, 2).transpose(1, 2)
    return x.reshape(b, c, h, w).flatten(2).mean(-1)


def second(net, x):
    """Sequences with the batch second, and a constant of each place."""
    h = net.norm(x.flatten(2).permute(2, 0, 1)) + torch.linspace(-1, 1, 16)[:, None, None]
    h = torch.relu(net.out(h)) * 0.5 + h
    return torch.cat([h[:8], h[8:].flip(0)], 0).mean(0)


def heads(net, x):
    """Heads as rows of a larger batch, as torch's own attention has them."""
    q = net.out(x.flatten(2).mT).reshape(len(x), 16, 2, 4).transpose(1, 2).reshape(-1, 16, 4)
    mask = torch.zeros(16, 16).masked_fill(torch.ones(16, 16).triu(1) > 0, -1e9)
    mask = mask.expand(len(q), 16, 16)
    y = torch.bmm(torch.baddbmm(mask, q * 0.5, q.transpose(1, 2)).softmax(-1), q)
    return y.view(len(x), 2, 16, 4).transpose(1, 2).flatten(2)


def frames(net, x):
    """One network for each half of an image."""
    b = x.shape[0]
    h = x.reshape(b, 8, 2, 4, 4).transpose(1, 2).reshape(b * 2, 8, 4, 4)
    h = functional.max_pool2d(net.bn(net.conv(h)).relu(), 2)
    h = functional.pad(functional.avg_pool2d(h, 2), (1, 0, 0, 1))
    return h.view(b, -1)


def doubled(net, x):
    """Two views of a sample in one batch."""
    h = net.out(x.flatten(2).mT)
    h = net.out(torch.cat([h, h.flip(1)], 0)).tanh()
    a, b = h.chunk(2, 0)
    return (a - b[:, ::2].repeat(1, 2, 1) + h[: len(x)]).flatten(1)


def letters(net, x):
    h = torch.einsum("bchw->hwbc", x).flatten(0, 1)
    h = torch.einsum("sbc,dc->sbd", h, torch.eye(8) * 0.5 + 0.1)
    return torch.stack([h.relu(), h], 0)[1].amax(0) + h.select(0, 3)


def repeated(net, x):
    """Rows of a sample repeated beside the batch, and a constant row for each sample."""
    h = net.out(x.flatten(2).mean(-1)).repeat_interleave(2, 0)
    h = h + torch.stack([torch.zeros(8), torch.ones(8)]).repeat(len(x), 1)
    return net.out(h.relu()).view(len(x), 16)


def written(net, x):
    """Places written in rows of a larger batch, and with the batch second."""
    rows = net.out(x.flatten(2).mT).flatten(0, 1)
    kept = rows.clone()
    kept[:, 2] = rows[:, 5] * 2
    kept[:, 4:6] = 0.5
    second = kept.view(len(x), 16, 8).transpose(0, 1).clone()
    second[3] = second[4].relu()
    second[8:, :, 1] = 1.0
    return second.transpose(0, 1).flatten(1)


FORWARDS = [swin, grid, patches, second, frames, doubled, letters, repeated, written, heads]
SHAPES = {swin: (8, 4, 4), frames: (16, 4, 4)}


def network(forward):
    torch.manual_seed(0)
    norm = nn.LayerNorm(8)
    bn = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight, 1, 0.2)
    bn.running_var.uniform_(0.5, 2)
    conv = nn.Conv2d(8, 4, 3, padding=1)
    layers = {"qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8)}
    return Net(forward, norm=norm, bn=bn, conv=conv, **layers).eval()


@pytest.mark.parametrize("forward", FORWARDS)
def test_the_batch_comes_back(forward):
    follows(network(forward), samples(*SHAPES.get(forward, (8, 4, 4))), bound=0.1)


@cache
def windowed():
    x = samples(*SHAPES[swin])
    graph = quantize(network(swin), x)
    return graph, reference.quantize_input(graph, x[:2].numpy())


@pytest.mark.parametrize("executor", [Mpc("balanced"), He("latency")], ids=repr)
def test_encrypted_windows_equal_the_reference(executor):
    graph, q = windowed()
    got = executor.prepare(graph).run(q)[graph.output.name]
    assert np.array_equal(got, reference.run_int(graph, q))


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.out(x.flatten(2).mT).transpose(0, 1).cumsum(1).transpose(0, 1),
        lambda m, x: m.out(x.flatten(2).mT).transpose(0, 1),
        lambda m, x: m.out(x.flatten(2).mT.flatten(0, 1)).softmax(0).view(len(x), -1),
        lambda m, x: m.out(x.flatten(2).mT.flatten(0, 1)),
        lambda m, x: (
            m.out(x.mean((2, 3))).repeat(2, 1).view(2, -1).mean(1).expand(len(x), 2)
            + x[:, :2, 0, 0]
        ),
    ],
)
def test_what_mixes_samples_is_refused(forward):
    with pytest.raises(UnsupportedModule) as raised:
        quantize(network(forward), samples(8, 4, 4))
    assert "batch" in str(raised.value)
