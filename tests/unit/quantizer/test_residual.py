"""Sums that take a layer's accumulator as it stands: residual blocks without a rounding between."""

import numpy as np
import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from secure_quant import reference
from secure_quant.interop.qdq_export import to_qdq
from secure_quant.ir import artifact, ops
from secure_quant.ir.sums import layer_sums
from secure_quant.quantizer import Training, quantize
from secure_quant.quantizer._torchao import quiet


class Block(nn.Module):
    """A residual block whose channels are far apart, behind a layer; ``join``: how it ends."""

    def __init__(self, join=torch.add, side=False, channels=6) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.second.weight.data *= torch.logspace(-1, 1, channels)[:, None, None, None]
        self.side = nn.Conv2d(channels, channels, 1) if side else None
        self.last = nn.Conv2d(channels, 4, 3)
        self.join = join
        self.eval()

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.second(self.first(x).relu())
        return self.last(self.join(y, x if self.side is None else self.side(x)).relu())


def images(count=96):
    torch.manual_seed(8)
    return torch.randn(count, 3, 8, 8)


def sums(graph):
    """The Adds that read a layer's accumulator."""
    return [graph.by_name[name] for name in sorted(layer_sums(graph.nodes))]


def off(graph, model, x):
    with torch.no_grad():
        want = model(x).numpy()
    error = reference.run(graph, x.numpy()).reshape(want.shape) - want
    return float(np.sqrt(np.mean(error**2) / np.mean(want**2)))


@pytest.mark.parametrize("join", [torch.add, torch.sub], ids=["add", "sub"])
def test_a_block_rounds_once(join):
    model = Block(join)
    graph = quantize(model, images())
    (total,) = sums(graph)
    assert total.inputs[0] == "second"
    assert total.axis == 0
    assert len(set(total.factors[:6])) > 1
    assert not [n for n in graph.nodes if n.name == "second.q"]
    assert off(graph, model, images(64)) < 0.02
    assert artifact.decode(artifact.encode(graph)).hash == graph.hash


@pytest.mark.parametrize("mode", ["static", "weight-only"])
def test_factors_bring_both_to_one_scale(mode):
    """To less than an eighth of a step of the result, at the largest value that there can be."""
    graph = quantize(Block(), images(), mode=mode)
    (total,) = sums(graph)
    layer, skip = (graph.values[name] for name in total.inputs)
    table = graph.consumers[total.name][0]
    f, g = np.array(total.factors, np.float64).reshape(2, -1)
    assert np.allclose(f / np.gcd.reduce(f.astype(int)) * layer.scale, f * total.scale, rtol=1e-6)
    largest = skip.centred.magnitude * np.abs(g * total.scale - skip.scale).max()
    assert largest <= table.scale / 8 * 1.001


def test_of_two_layers_the_longer_way_is_not_rounded():
    model = Block(side=True)
    graph = quantize(model, images())
    (total,) = sums(graph)
    assert total.inputs == ("second", "side.q")
    assert off(graph, model, images(64)) < 0.03


class Other(nn.Module):
    """What is no such sum, by name."""

    def __init__(self, kind) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.a, self.b, self.kind = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), kind
        self.c = nn.Conv2d(1, 3, 8)
        self.eval()

    def forward(self, x):
        y = self.a(x)
        if self.kind == "answer":
            return x + y
        if self.kind == "read twice":
            return self.b((x + y).relu()) + self.b(y)
        if self.kind == "broadcast":
            return self.b(x + self.c(x[:, :1]))
        return self.b(y + torch.tensor([1.0]))  # a constant


@pytest.mark.parametrize("kind", ["answer", "read twice", "broadcast", "constant"])
def test_other_sums_stay_as_they_were(kind):
    model = Other(kind)
    graph = quantize(model, images())
    assert not [n for n in sums(graph) if "a" in n.inputs or "c" in n.inputs]
    assert off(graph, model, images(64)) < 0.03


def test_scales_at_run_time_round_before_the_sum():
    assert not sums(quantize(Block(), images(), mode="dynamic"))


def test_training_sees_the_sum_that_the_integers_make():
    model, x = Block(channels=4), images(64)
    with torch.no_grad():
        goal = model(x)
    training = Training(epochs=1, batch_size=16, loss=nn.functional.mse_loss)
    graph = quantize(model, x, mode="qat", targets=goal, training=training)
    assert len(sums(graph)) == 1


def test_a_block_along_time_rounds_once():
    class Sound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(9)
            self.stem, self.branch = nn.Conv1d(2, 5, 3), nn.Conv1d(5, 5, 3, padding=1)
            self.side, self.last = nn.Conv1d(5, 5, 1), nn.Conv1d(5, 3, 3)
            self.eval()

        def forward(self, x):
            x = self.stem(x).relu()
            x = (x - self.branch(x)).relu()
            return self.last(self.side(x) + self.branch(self.branch(x).relu()))

    torch.manual_seed(7)
    model, x = Sound(), torch.randn(200, 2, 20)
    graph = quantize(model, x)
    assert [graph.values[n.name].shape for n in sums(graph)] == [(5, 1, 18)] * 2
    assert off(graph, model, torch.randn(64, 2, 20)) < 0.03


def test_linear_layers_enter_a_stream():
    """As before a LayerNorm that is not the only one that reads the sum."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(6)
            self.branch, self.norm = nn.Linear(24, 24), nn.LayerNorm(24)
            self.feed, self.last = nn.Linear(24, 24), nn.Linear(24, 5)
            self.eval()

        def forward(self, x):
            x = x + self.branch(x)
            return self.last(x + self.feed(self.norm(x)))

    torch.manual_seed(7)
    model, x = Stream(), torch.randn(200, 6, 24)
    graph = quantize(model, x)
    assert [isinstance(n, ops.Add) and n.axis for n in sums(graph)] == [-1, -1]
    assert off(graph, model, torch.randn(64, 6, 24)) < 0.02


@pytest.mark.parametrize("side", [False, True], ids=["skip", "layer"])
def test_what_a_runtime_leaves_unrounded_is_taken_so(side):
    """PyTorch's quantizer for x86 rounds a convolution, a sum and a ReLU once."""
    model, x = Block(side=side), images()
    with quiet():
        program = torch.export.export(
            model, (x[:3],), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)
        )
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(program.module(check_guards=False), quantizer)
        prepared(x)
        made = convert_pt2e(prepared)
    graph = quantize(made, x)
    assert len(sums(graph)) == 1
    with torch.no_grad():
        want = made(x).numpy()
    got = reference.run(graph, x.numpy())
    assert np.sqrt(((got - want) ** 2).mean() / (want**2).mean()) < 0.02


def test_our_own_qdq_form_comes_back_with_its_sum():
    x = images()
    first = quantize(Block(), x)
    again = quantize(to_qdq(first), x)
    assert len(sums(again)) == 1
    want, got = reference.run(first, x.numpy()), reference.run(again, x.numpy())
    assert np.sqrt(((got - want) ** 2).mean() / (want**2).mean()) < 0.02
