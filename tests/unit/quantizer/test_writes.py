"""Writes into tensors, through whatever view, mean what they mean in torch."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import Net, follows

from secure_quant.errors import UnsupportedModule
from secure_quant.ir import ops
from secure_quant.quantizer import memory, quantize

MASK = torch.tensor([True, False] * 4)


def halves(h, x):
    a, _ = h.chunk(2, 1)
    a.zero_()


def halves_added(h, x):
    a, b = h.chunk(2, 1)
    a += b


def uneven(h, x):
    a, b = h.split([3, 5], 1)
    b.mul_(2)
    a.copy_(b[:, :3])


def transposed(h, x):
    h.view(-1, 2, 4).transpose(1, 2)[:, :2].fill_(0.5)


def matrix(h, x):
    v = h.view(-1, 4, 2).mT
    v[:, 0] = v[:, 1].clone()


def rows(h, x):
    h.view(-1, 2, 4)[:, 0] = x[:, :4]


def unbound(h, x):
    a, b = h.view(-1, 2, 4).unbind(1)
    b.sub_(a)


def number(h, x):
    h[:, 3] = 1.5


def column(h, x):
    h[:, 3] = x[:, 0]


def negative(h, x):
    h[:, -2:] = -h[:, -2:].abs()


def seen_later(h, x):
    v = h[:, :4]
    h.relu_()
    return torch.cat([v, h[:, 4:]], 1)


def both_ways(h, x):
    v = h[:, 2:6]
    h.add_(1)
    v.mul_(2)
    return h + functional.pad(v, (2, 2))


def not_seen(h, x):
    y = h[:, :4].relu()
    h[:, :4] = 5.0
    return h + functional.pad(y, (0, 4))


def steps(h, x):
    h[:, ::2] = 0


def steps_added(h, x):
    h[:, 1::2] += x[:, ::2]


def masked(h, x):
    h[:, MASK] = 0.0


def placed(h, x):
    h[:, [0, 5, 2]] = x[:, :3]


def filled(h, x):
    h.masked_fill_(MASK, 0.25)


def into_the_input(h, x):
    x[:, :4] = 0
    return h + x


def input_added(h, x):
    x += 1
    return h * x


def diagonal(h, x):
    h[:, :4].view(-1, 2, 2).diagonal(dim1=1, dim2=2).zero_()


def diagonal_filled(h, x):
    h.view(-1, 2, 4).diagonal(0, 1, 2).fill_(2.0)


def onto_zeros(h, x):
    z = torch.zeros_like(h)
    z[:, :4] = h[:, 4:]
    return z


def onto_sized_zeros(h, x):
    z = torch.zeros(x.shape[0], 8)
    z[:, 2:5] = h[:, :3]
    return z + x


def onto_memory(h, x):
    z = torch.empty_like(h)
    z[:, :4], z[:, 4:] = h[:, 4:], h[:, :4]
    return z


def narrowed(h, x):
    h.narrow(1, 2, 3).sigmoid_()


def chain(h, x):
    h.relu_()
    h.add_(x)
    h[:, :2].mul_(3)
    h.clamp_(-1, 1)


def behind_dropout(h, x):
    h = functional.dropout(h, 0.5, False)
    h.relu_()
    return h


def itself(h, x):
    h[:, :4] = h[:, 4:]


def shifted(h, x):
    h[:, 1:] = h[:, :-1].clone()


def all_of_it(h, x):
    h[:] = x


def contiguous(h, x):
    v = h.view(-1, 2, 4).permute(0, 2, 1).contiguous()
    v[:, :2] = 0
    return v.view(-1, 8) + h


def clone(h, x):
    v = h.clone()
    v.zero_()
    v += 1
    return h * v


def index_filled(h, x):
    h.index_fill_(1, torch.tensor([3, 1, 3]), 2.0)


def index_copied(h, x):
    h.index_copy_(1, torch.tensor([3, 1]), x[:, :2])


def view_of_a_view(h, x):
    v = h[:, 2:6]
    v[:, 1:3].mul_(0)
    v.add_(1)


def powers(h, x):
    h.sub_(h.mean(1, keepdim=True))
    h.pow_(2)
    h[:, :4].neg_()


def exchanged(h, x):
    h[:, [1, 2]], h[:, [3, 4]] = h[:, [3, 4]], h[:, [1, 2]]


def in_a_loop(h, x):
    for i in range(3):
        h[:, i] = h[:, i + 1] * 2


WRITES = [
    index_filled, index_copied, view_of_a_view, powers, exchanged, in_a_loop,
    halves, halves_added, uneven, transposed, matrix, rows, unbound, number, column, negative,
    seen_later, both_ways, not_seen, steps, steps_added, masked, placed, filled, into_the_input,
    input_added, diagonal, diagonal_filled, onto_zeros, onto_sized_zeros, onto_memory, narrowed,
    chain, behind_dropout, itself, shifted, all_of_it, contiguous, clone,
]  # fmt: skip


def net(write):
    def forward(m, x):
        h = m.a(x)
        made = write(h, x)
        return m.b(h if made is None else made)

    torch.manual_seed(0)
    return Net(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 4))


@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)
def test_a_write_means_what_it_does_in_torch(write):
    model = net(write)
    follows(model, torch.randn(128, 8, generator=torch.Generator().manual_seed(1)))


MOVES = [
    lambda h, _: h[:, [7, 1, 1, 0, 2, 3, 4, 4]],
    lambda h, x: h[:, :1].expand(-1, 8) * x,
    lambda h, _: h.flip(1),
    lambda h, _: h.roll(3, 1),
    lambda h, _: functional.pad(h[:, :5], (1, 2), value=0.3),
    lambda h, _: functional.pad(h.view(-1, 2, 4)[:, :, 1:3], (1, 1), mode="reflect").flatten(1),
    lambda h, _: functional.pad(h.view(-1, 2, 4)[:, :, :2], (1, 1), mode="circular").flatten(1),
    lambda h, _: functional.pad(h.view(-1, 2, 4)[:, :, :2], (2, 0), mode="replicate").flatten(1),
    lambda h, _: h[:, :4].repeat(1, 2),
    lambda h, _: h[:, :4].repeat_interleave(2, 1),
    lambda h, _: h.index_select(1, torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])),
    lambda h, _: h.view(-1, 2, 4)[:, :, :2].diagonal(dim1=1, dim2=2).repeat(1, 4),
    lambda h, x: torch.where(MASK, h, x),
    lambda h, _: h.masked_fill(MASK, -3.0),
    lambda h, x: torch.stack([h, x], 2)[:, :, 0],
    lambda h, _: h.view(-1, 2, 4).permute(0, 2, 1).contiguous().view(-1, 8),
    lambda h, _: torch.cat([h[:, :6], h.new_full((h.shape[0], 2), 0.7)], 1),
]


@pytest.mark.parametrize("number", range(len(MOVES)))
def test_a_move_means_what_it_does_in_torch(number):
    model = net(MOVES[number])
    follows(model, torch.randn(128, 8, generator=torch.Generator().manual_seed(1)))


def test_a_relu_in_place_costs_no_second_capture():
    """The plain case stays what it was: one table, no joins."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.ReLU(inplace=True), nn.Linear(8, 4))
    graph = quantize(model, torch.randn(32, 8))
    kinds = [ops.Input, ops.Linear, ops.Requantize, ops.Linear, ops.Output]
    assert [type(node) for node in graph.nodes] == kinds


def first_sample(h, x):
    h[0] = 0


def over_the_batch(h, x):
    h.view(-1)[:3] = 1.0


def by_strides(h, x):
    return h.as_strided((h.shape[0], 8), (8, 1)) + x


@pytest.mark.parametrize(
    ("write", "word"),
    [(first_sample, "batch"), (over_the_batch, "batch"), (by_strides, "as_strided"),
     (lambda h, x: h[:, x[0].long() % 8], "batch"),
     (lambda h, x: h.masked_fill(x > 0, -torch.inf).sigmoid(), "infinity")],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_by_name(write, word):
    with pytest.raises(UnsupportedModule, match=word) as caught:
        quantize(net(write), torch.randn(32, 8))
    assert caught.value.hint


def halves_of(make):
    def forward(m, x):
        z = make(x)
        z[:, :4] = m.a(x)[:, 4:]
        return torch.where(MASK, torch.zeros(()), z).clamp(-9, 9)

    return Net(forward, a=nn.Linear(8, 8))


EMPTIES = {
    "empty": lambda x: torch.empty(x.shape),
    "empty_like": torch.empty_like,
    "new_empty": lambda x: x.new_empty(x.shape),
    "empty_strided": lambda x: torch.empty_strided(x.shape, (8, 1)),
    "integers": lambda x: torch.empty(x.shape, dtype=torch.int32).float(),
}


@pytest.mark.parametrize("lies", [0.0, 3.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", EMPTIES)
def test_memory_that_nobody_wrote_is_refused(kind, lies):
    """Whatever lies there."""
    with memory.Filled(lies), pytest.raises(UnsupportedModule, match="never written") as caught:
        quantize(halves_of(EMPTIES[kind]), torch.randn(32, 8))
    assert caught.value.hint


class Counting(nn.Module):
    def __init__(self, used):
        super().__init__()
        self.used = used
        self.register_buffer("calls", torch.zeros(1))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        self.calls += 1
        return self.fc(x) + (self.calls if self.used else 0)


@pytest.mark.parametrize("used", [False, True])
def test_state_that_a_call_changes_is_refused(used):
    model = Counting(used)
    with pytest.raises(UnsupportedModule, match="calls") as caught:
        quantize(model, torch.randn(64, 8))
    assert caught.value.hint
    assert model.calls == 0
