"""Every move of values that torch has, on data of a sample: the same integers in other places."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import Net, follows

from secure_quant.errors import UnsupportedModule
from secure_quant.ir import ops
from secure_quant.quantizer import quantize

PLACES = torch.tensor([2, 0, 1, 1])
GRID = torch.tensor([[[1, 0, 3, 2]]]).expand(4, 4, 4)[None]


def placed(x):
    """Writes at several places along two axes."""
    z = torch.zeros_like(x)
    z[:, [0, 2], [1, 1]] = x[:, :2, 0]
    return z


def ordered(x):
    return [
        torch.stack([x, x.flip(1)], 2), x.flip(1, 2), torch.fliplr(x), x.roll((1, 2), (2, 3)),
        x.flatten(1).roll(3, 1), torch.rot90(x, 1, (2, 3)), torch.rot90(x, 2, (1, 3)),
        x.narrow(2, 1, 2), x.swapdims(1, 2), x.movedim(1, -1), x.movedim((1, 2), (3, 1)),
        torch.moveaxis(x, 1, 2), x.reshape_as(x.flatten(2)), x.flatten(2).view_as(x),
        x.diagonal(0, 2, 3), torch.hsplit(x, 2)[1], x.tensor_split(3, 2)[0],
        x.split([1, 3], 2)[1], torch.unsafe_chunk(x, 2, 1)[0],
    ]  # fmt: skip


def indexed(x):
    return [
        x.index_select(1, PLACES), x[:, PLACES], x[:, [0, 1], [2, 3]],
        x[:, :, [[0], [1]], [[2, 3]]], x[:, torch.tensor([[0, 1], [2, 3]])],
        x[:, :, torch.eye(4) > 0], x[:, PLACES > 0], x.gather(1, GRID.expand(len(x), -1, -1, -1)),
        torch.take_along_dim(x, PLACES.view(1, 4, 1, 1), 1), x[..., torch.arange(3, -1, -1)],
        x[:, :, ::2, 1::2], x[..., None, 1], placed(x),
        torch.zeros_like(x).index_add(1, PLACES[:2], x[:, :2]),
        torch.zeros(len(x), 4, 4, 4).scatter(1, GRID.expand(len(x), -1, -1, -1), x),
        functional.fold(functional.unfold(x, 2, stride=2), 4, 2, stride=2), x.flatten(1)[:, PLACES],
    ]  # fmt: skip


def wider(x):
    return [
        x[:, :, None].expand(-1, -1, 3, -1, -1), x.repeat(1, 2, 1, 3), x.tile(1, 2),
        torch.tile(x, (1, 1, 2, 2)), x.repeat_interleave(2, 1), x.tril(),
        x.repeat_interleave(torch.tensor([1, 2, 0, 3]), 1), torch.triu(x, 1),
        torch.diag_embed(x), torch.column_stack([x, x]), torch.dstack([x.flatten(2)] * 2),
        torch.concat([x, x], -1), torch.hstack([x, x]), torch.kron(torch.eye(2), x.flatten(2)),
        x.mean(2, keepdim=True) + x.mean(3, keepdim=True), x[:, :, None] - x[:, None],
        x.amax(2, keepdim=True) * x.amax(1, keepdim=True), torch.broadcast_to(x[..., :1], x.shape),
        x.unfold(2, 2, 1), x.unfold(2, 2, 2).unfold(3, 2, 2), functional.unfold(x, 3, padding=1),
        functional.unfold(x, 2, dilation=2),
    ]  # fmt: skip


def padded(x):
    pad = functional.pad
    return [
        pad(x, (1, 2, 0, 1)), pad(x, (1, 2, 0, 1), value=1.5), pad(x, (-1, 1, 2, -2)),
        pad(x, (1, 2, 3, 1), mode="reflect"), pad(x, (1, 2, 0, 4), mode="replicate"),
        pad(x, (1, 2, 3, 1), mode="circular"), pad(x, (1, -1, 2, 0), mode="circular"),
        pad(x, (-1, 1, 2, 0), mode="reflect"), nn.ReplicationPad1d((1, 2))(x.flatten(2)),
        pad(x, (0, 0, 0, 0, 1, 2)),
    ]  # fmt: skip


def resized(x):
    up = functional.interpolate
    return [
        functional.pixel_shuffle(x, 2), functional.pixel_unshuffle(x, 2),
        functional.channel_shuffle(x, 2), up(x, scale_factor=2), up(x, size=(6, 7)),
        up(x, scale_factor=0.5), up(x.flatten(2), scale_factor=2),
        up(x[:, :, None], size=(2, 3, 8)),
        up(x, size=(6, 6), mode="nearest-exact"), nn.Upsample(size=5)(x),
    ]  # fmt: skip


def network(moves):
    torch.manual_seed(0)

    def forward(net, x):
        h = net.c(x).relu()
        return torch.cat([part.flatten(1) for part in moves(h)], 1)

    return Net(forward, c=nn.Conv2d(4, 4, 1)).eval()


def samples():
    return torch.randn(32, 4, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("moves", [ordered, indexed, wider, padded, resized])
def test_moves_mean_what_they_do_in_torch(moves):
    graph = follows(network(moves), samples(), bound=0.03)
    assert len(graph.nodes) < 260


def test_an_order_of_many_pieces_is_one_step():
    order = torch.randperm(64)
    graph = quantize(network(lambda x: [x.flatten(1)[:, order]]), samples())
    assert [type(n) for n in graph.nodes].count(ops.Gather) == 1
    assert len(graph.nodes) < 8


@pytest.mark.parametrize(
    ("moves", "word"),
    [
        (lambda x: [x.index_add(1, torch.tensor([0, 0]), x[:, :2])], "one place"),
        (lambda x: [x.take(torch.arange(len(x)))[:, None]], "batch"),
        (lambda x: [x.gather(1, (x > 0).long())], "depend"),
        (lambda x: [x.flip(0)], "batch"),
    ],
)
def test_what_is_no_move_is_refused(moves, word):
    with pytest.raises(UnsupportedModule) as raised:
        quantize(network(moves), samples())
    assert word in str(raised.value)
