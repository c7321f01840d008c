"""BatchNorm folds where that is right, is a layer of its own elsewhere, or is refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import Net, follows, trained

from secure_quant.errors import NotFinite, UnsupportedModule
from secure_quant.ir import ops
from secure_quant.quantizer import Training, quantize


def samples(*shape):
    return torch.randn(128, *shape, generator=torch.Generator().manual_seed(1))


def bn1(width, **options):
    return trained(nn.BatchNorm1d(width, **options))


def bn2(width, **options):
    return trained(nn.BatchNorm2d(width, **options))


def layers(graph):
    return [
        type(node).__name__ for node in graph.nodes if isinstance(node, ops.Linear | ops.Conv2d)
    ]


@pytest.mark.parametrize(
    ("forward", "make", "shape", "count"),
    [
        # alone behind its layer: folded
        (lambda m, x: m.n(m.a(x)), lambda: {"a": nn.Linear(8, 8), "n": bn1(8)}, (8,), 1),
        (lambda m, x: m.n(m.a(x)), lambda: {"a": nn.Conv1d(3, 4, 3), "n": bn1(4)}, (3, 8), 1),
        (lambda m, x: m.n(m.a(x)), lambda: {"a": nn.Conv2d(3, 4, 3), "n": bn2(4)}, (3, 6, 6), 1),
        (lambda m, x: m.n(m.a(x)),
         lambda: {"a": nn.Conv2d(4, 4, 3, groups=2, bias=False), "n": bn2(4, affine=False)},
         (4, 6, 6), 1),
        (lambda m, x: m.p(m.n(m.a(x))),
         lambda: {"a": nn.Linear(8, 8), "n": bn1(8), "p": bn1(8)}, (8,), 1),
        # one layer, two BatchNorms: two layers
        (lambda m, x: m.n(m.a(x)) + m.p(m.a(2 * x)),
         lambda: {"a": nn.Conv2d(3, 4, 3), "n": bn2(4), "p": bn2(4)}, (3, 6, 6), 2),
        (lambda m, x: m.n(h := m.a(x)) + m.p(h),
         lambda: {"a": nn.Conv2d(3, 4, 3), "n": bn2(4), "p": bn2(4)}, (3, 6, 6), 3),
        # another reads the layer
        (lambda m, x: torch.relu(m.n(h := m.a(x))) + h,
         lambda: {"a": nn.Linear(8, 8), "n": bn1(8)}, (8,), 2),
        (lambda m, x: torch.relu(m.n(h := m.a(x))) + h,
         lambda: {"a": nn.Conv2d(3, 4, 3), "n": bn2(4)}, (3, 6, 6), 2),
        (lambda m, x: torch.relu(m.n(h := m.a(x))) + h,
         lambda: {"a": nn.Conv1d(3, 4, 3), "n": bn1(4)}, (3, 6), 2),
        # the channels are not the layer's outputs
        (lambda m, x: m.n(m.a(x)), lambda: {"a": nn.Linear(8, 8), "n": bn1(8)}, (8, 8), 2),
        (lambda m, x: m.n(m.a(x)), lambda: {"a": nn.Linear(8, 5), "n": bn1(3)}, (3, 8), 2),
        (lambda m, x: m.n(m.a(x).transpose(1, 2)), lambda: {"a": nn.Linear(8, 8), "n": bn1(8)},
         (8, 8), 2),
        # before a layer, behind a pool, a sum, a join, the input
        (lambda m, x: m.a(m.n(x)), lambda: {"a": nn.Linear(8, 4), "n": bn1(8)}, (8,), 2),
        (lambda m, x: m.n(functional.max_pool2d(m.a(x), 2)),
         lambda: {"a": nn.Conv2d(3, 4, 3), "n": bn2(4)}, (3, 6, 6), 2),
        (lambda m, x: m.n(functional.avg_pool2d(m.a(x), 2)),
         lambda: {"a": nn.Conv2d(3, 4, 3), "n": bn2(4)}, (3, 6, 6), 2),
        (lambda m, x: m.n(m.a(x) + x), lambda: {"a": nn.Linear(8, 8), "n": bn1(8)}, (8,), 2),
        (lambda m, x: m.n(torch.cat([m.a(x), x], 1)),
         lambda: {"a": nn.Linear(8, 8), "n": bn1(16)}, (8,), 2),
        (lambda m, x: m.n(m.a(x).relu()), lambda: {"a": nn.Linear(8, 8), "n": bn1(8)}, (8,), 2),
        (lambda m, x: m.n(x), lambda: {"n": bn2(3)}, (3, 4, 4), 1),
        # with an in-place function behind, on a view that is written
        (lambda m, x: functional.relu(m.n(m.a(x)), inplace=True),
         lambda: {"a": nn.Conv2d(3, 4, 3), "n": bn2(4)}, (3, 6, 6), 1),
        (lambda m, x: functional.relu_(m.n(m.a(x))[:, :2]) + 1,
         lambda: {"a": nn.Conv2d(3, 4, 3), "n": bn2(4)}, (3, 6, 6), 1),
        # statistics of training in an InstanceNorm
        (lambda m, x: m.n(m.a(x)),
         lambda: {"a": nn.Conv2d(3, 4, 3),
                  "n": trained(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))},
         (3, 6, 6), 1),
    ],
)  # fmt: skip
def test_it_is_folded_only_where_that_is_right(forward, make, shape, count):
    torch.manual_seed(0)
    graph = follows(Net(forward, **make()), samples(*shape))
    assert len(layers(graph)) == count


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(8, track_running_stats=False), nn.BatchNorm1d(8, affine=False,
     track_running_stats=False)],
)  # fmt: skip
def test_statistics_of_the_batch_are_refused(norm):
    model = nn.Sequential(nn.Linear(8, 8), norm)
    with pytest.raises(UnsupportedModule, match="statistics of the batch") as caught:
        quantize(model, samples(8))
    assert "track_running_stats" in str(caught.value)
    assert " 1" in str(caught.value)


@pytest.mark.parametrize("write", [False, True])
def test_training_inside_a_forward_is_refused(write):
    def forward(m, x):
        h = m.a(x)
        if write:
            h[:, :2] = 0
        mean, variance = m.n.running_mean, m.n.running_var
        return functional.batch_norm(h, mean, variance, training=True)

    model = Net(forward, a=nn.Linear(8, 8), n=bn1(8))
    with pytest.raises(UnsupportedModule, match=r"statistics of the batch|changes with each call"):
        quantize(model, samples(8))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -5.0])
def test_statistics_that_are_no_numbers_are_refused(value):
    model = nn.Sequential(nn.Linear(8, 8), bn1(8))
    model[1].running_var[3] = value
    with pytest.raises(NotFinite):
        quantize(model, samples(8))


def test_training_sees_the_folded_layer():
    torch.manual_seed(0)
    model = Net(lambda m, x: m.o(torch.relu(m.n(h := m.a(x))) + h).flatten(1),
                a=nn.Conv2d(3, 4, 3), n=bn2(4), o=nn.Conv2d(4, 2, 4))  # fmt: skip
    x = samples(3, 6, 6)
    training = Training(epochs=1, learning_rate=1e-6)
    options = {"mode": "qat", "targets": torch.zeros(len(x), dtype=torch.long)}
    graph = follows(model, x, bound=0.06, training=training, **options)
    assert len(layers(graph)) == 3
