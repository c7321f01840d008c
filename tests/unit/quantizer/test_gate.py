"""The gate compares a captured graph with the module itself: whatever is changed in the graph, it
says where; and a module that is no function of one sample is refused."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from secure_quant.errors import CaptureMismatch, UnsupportedModule
from secure_quant.quantizer import Training, quantize
from secure_quant.quantizer.capture import capture
from secure_quant.quantizer.gate import Gate
from secure_quant.quantizer.passes import rewrite, specialize
from secure_quant.quantizer.pipeline import Settings, make_quantizer

aten = torch.ops.aten


class Net(nn.Module):
    """A residual block with a norm, a pool, and a head."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.norm.running_mean = torch.randn(4)
        self.norm.running_var = torch.rand(4) + 0.5
        self.act, self.head = nn.GELU(), nn.Linear(16, 3)
        self.rows = nn.LayerNorm(16)

    def forward(self, x):
        h = self.act(self.norm(self.conv(x)))
        h = functional.max_pool2d(h + h.mean((2, 3), keepdim=True), 2).flatten(1)
        return self.head(self.rows(h))


def built():
    torch.manual_seed(0)
    x = torch.randn(40, 2, 4, 4)
    model = Net()
    module = specialize(rewrite(capture(model, x[:2])), [x])
    prepared = prepare_pt2e(module, make_quantizer(Settings()))
    return Gate(model, [x]), prepared


def steps(module):
    return [n for n in module.graph.nodes if n.op == "call_function" and n.meta["val"].ndim > 1]


def change(module, node, share):
    """What reads ``node`` gets v + share · v²: no norm behind it makes that good again."""
    with module.graph.inserting_after(node):
        square = module.graph.call_function(aten.mul.Tensor, (node, node))
    with module.graph.inserting_after(square):
        part = module.graph.call_function(aten.mul.Tensor, (square, share))
    with module.graph.inserting_after(part):
        off = module.graph.call_function(aten.add.Tensor, (node, part))
    node.replace_all_uses_with(off, delete_user_cb=lambda user: user not in (off, square))


def test_the_right_graph_passes():
    gate, prepared = built()
    gate.check(prepared)
    assert not any(o.counts.any() for o in prepared.modules() if hasattr(o, "counts"))


COUNT = len(steps(built()[1]))


@pytest.mark.parametrize("place", range(COUNT))
def test_a_step_that_is_a_little_off_is_found(place):
    gate, prepared = built()
    node = steps(prepared)[place]
    change(prepared, node, 0.01)
    with pytest.raises(CaptureMismatch) as caught:
        gate.check(prepared)
    assert "Net" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("conv", "the first difference is at the output of 'act'"),
        ("rows", "the first difference is at the output of 'head'"),
        ("head", "equal up to the output of 'head'"),
    ],
)
def test_the_first_difference_is_named(path, words):
    gate, prepared = built()
    node = [n for n in steps(prepared) if path in str(n.meta.get("nn_module_stack"))][-1]
    change(prepared, node, 0.3)
    with pytest.raises(CaptureMismatch, match="on calibration samples") as caught:
        gate.check(prepared)
    assert words in str(caught.value)


class Rare(nn.Module):
    """Two functions that part only beyond what any calibration sample reaches."""

    def forward(self, x):
        return functional.hardtanh(x.sum(1, keepdim=True), -8.0, 8.0) * x


def test_a_difference_that_only_extreme_inputs_show_is_found():
    torch.manual_seed(0)
    x = torch.rand(40, 16) - 0.5
    module = specialize(rewrite(capture(Rare(), x[:2])), [x])
    prepared = prepare_pt2e(module, make_quantizer(Settings()))
    gate = Gate(Rare(), [x])
    gate.check(prepared)
    (clamp,) = (n for n in prepared.graph.nodes if n.target is aten.hardtanh.default)
    assert float(x.sum(1).abs().max()) < 7 < float(x.amax(0).sum())
    clamp.args = (clamp.args[0], -7.0, 7.0)
    with pytest.raises(CaptureMismatch, match="extreme inputs"):
        gate.check(prepared)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.fc, self.function = nn.Linear(6, 6), function
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(6), persistent=False)

    def forward(self, x):
        return self.function(self, self.fc(x))


def counting(m, x):
    m.count += 1
    return x


def averaging(m, x):
    m.mean.mul_(0.9).add_(x.detach().mean(0) * 0.1)
    return x


class Remembering(nn.Module):
    """Keeps what it saw outside of parameters and buffers."""

    def __init__(self):
        super().__init__()
        self.fc, self.before = nn.Linear(6, 6), [0.0]

    def forward(self, x):
        self.before[0] += 1.0
        return self.fc(x) + (1.0 if self.before[0] > 5 else 0.0)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Call(lambda _, x: functional.dropout(x, 0.5)), "stays on in eval mode"),
        (Call(lambda _, x: functional.dropout(x, 0.5, training=True) * 0.1), "stays on"),
        (Call(counting), "'count'"),
        (Call(averaging), "'mean'"),
    ],
)
def test_random_modules_and_states_are_refused(model, words):
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModule) as caught:
        quantize(model, torch.randn(16, 6))
    assert words in str(caught.value)
    assert caught.value.hint


def test_a_state_outside_of_buffers_is_refused():
    with pytest.raises((UnsupportedModule, CaptureMismatch)):
        quantize(Remembering(), torch.randn(16, 6))


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x - x.mean(0),
        lambda _, x: x * x.shape[0],
        lambda _, x: x.reshape(-1, 12).flip(1).reshape(-1, 6) if x.shape[0] % 2 == 0 else x,
    ],
)
def test_a_result_that_depends_on_the_other_samples_is_refused(function):
    with pytest.raises((UnsupportedModule, CaptureMismatch)):
        quantize(Call(function), torch.randn(16, 6))


def test_the_place_where_samples_mix_is_named():
    torch.manual_seed(0)
    x = torch.randn(16, 6)
    model = nn.Sequential(nn.Linear(6, 6), Call(lambda _, h: h + h[:1]), nn.ReLU())
    with pytest.raises(UnsupportedModule, match=r"at .1..*depends on the others"):
        Gate(model, [x]).check_function(lambda part: model(part.float()).double())


def everything(model):
    named = [*model.named_parameters(), *model.named_buffers()]
    state = {n: (v, v.clone(), v.requires_grad, v.dtype, v._version) for n, v in named}
    hooks = {
        n: [len(getattr(m, k)) for k in ("_forward_hooks", "_forward_pre_hooks")]
        for n, m in model.named_modules()
    }
    return state, hooks, {n: (type(m), m.training) for n, m in model.named_modules()}


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight-only", "qat"])
def test_the_model_and_the_data_stay_as_they_are(mode):
    torch.manual_seed(0)
    model = Net()
    model.train()
    model.norm.eval()
    model.head.weight.requires_grad_(False)
    seen = []
    model.act.register_forward_hook(lambda *_: seen.append(1) and None)
    x = np.random.default_rng(0).normal(size=(24, 2, 4, 4)).astype(np.float32)
    before, data = everything(model), x.copy()
    generator = torch.random.get_rng_state()
    options = {"targets": np.zeros(24, np.int64), "training": Training(epochs=2, batch_size=8)}
    quantize(model, x, mode=mode, max_error=np.inf, **(options if mode == "qat" else {}))
    state, hooks, kinds = everything(model)
    assert (hooks, kinds) == before[1:]
    for name, (value, copy, grad, dtype, version) in before[0].items():
        assert state[name][0] is value
        assert torch.equal(value, copy)
        assert (value.requires_grad, value.dtype, value._version) == (grad, dtype, version)
        assert value.grad is None
    assert np.array_equal(x, data)
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_a_module_that_writes_into_its_input_does_not_write_into_ours():
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    kept = x.clone()

    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            x.mul_(0.5)
            return self.fc(x)

    try:
        graph = quantize(Writes(), x)
    except (CaptureMismatch, UnsupportedModule):
        graph = None
    assert torch.equal(x, kept)
    if graph is not None:
        assert abs(graph.input.scale * 255 - float(x.max() - x.min())) < 0.05 * float(x.max())


class Fixed(nn.Module):
    """Runs in float32 alone."""

    def __init__(self):
        super().__init__()
        self.fc, self.weight = nn.Linear(6, 6), torch.randn(6, 6)

    def forward(self, x):
        return self.fc(x) @ self.weight


def test_modules_of_one_dtype_are_compared_in_that():
    torch.manual_seed(0)
    x, model = torch.randn(40, 6), Fixed()
    gate = Gate(model, [x])

    def function(x, size=1.0):
        weight = model.fc.weight.double()
        h = x.double() @ weight.T + model.fc.bias.double()
        return size * h @ model.weight.double()

    gate.check_function(function)
    with pytest.raises(CaptureMismatch):
        gate.check_function(lambda x: function(x, 1.001))


@pytest.mark.parametrize("size", [1, 10, 50, 200])
def test_a_branch_on_the_number_of_samples_is_refused(size):
    model = Call(lambda _, h: h * 2 if h.shape[0] >= size + 1 else h)
    with pytest.raises(UnsupportedModule):
        quantize(model, torch.randn(16, 6))
