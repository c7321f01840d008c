"""Small modules as people write them, of which each was wrong, refused for no reason, or refused by
an error that said something else: right, or refused with a way out that works."""

import math
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from unit.quantizer.nets import Net, relative_error

from secure_quant import reference
from secure_quant.errors import (
    AccuracyLoss,
    CalibrationError,
    MalformedModel,
    UnsupportedModule,
)
from secure_quant.interop.onnx_export import to_onnx
from secure_quant.quantizer import quantize
from secure_quant.quantizer.gate import Gate
from secure_quant.quantizer.gate import relative_error as judged


class Held(Net):
    """With buffers too."""

    def __init__(self, forward, **held):
        layers = {name: value for name, value in held.items() if isinstance(value, nn.Module)}
        super().__init__(forward, **layers)
        for name in held.keys() - layers.keys():
            self.register_buffer(name, held[name])


def columns(m, x):
    h = m.a(x)
    h[:, 1] += h[:, 2]
    return m.b(h)


def cast_that_is_none(m, x):
    h = m.a(x)
    h.to(torch.float32)[:, :2] = 0
    return m.b(h)


def cast_that_copies(m, x):
    h = m.a(x)
    h.double()[:, :2] = 0
    return m.b(h)


def read_rounded_and_not(m, x):
    h = m.a(x)
    g = h * 0.7
    return torch.cat([g.reshape(len(x), -1), (g + h).reshape(len(x), -1)], 1)


def larger_of_a_value_and_its_function(m, x):
    h = m.a(x)
    g = functional.gelu(h)
    return m.b(g) + torch.maximum(g, -h)[:, :4]


def written_where_negative(m, x):
    h = m.a(x)
    h[h < 0] = 0
    return m.b(h)


def mask_before_the_scale(m, x):
    q, k, v = m.qkv(x).chunk(3, -1)
    return ((q @ k.transpose(1, 2) + m.mask) / 4.0).softmax(-1) @ v


def largest_of_the_shown(m, x):
    return m.a(x).masked_fill(m.hides[:, None], -math.inf).amax(1)


def largest_of_the_others(m, x):
    return m.b((m.a(x) + m.hides[:, None] * -1e9).max(1)[0])


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.größe = nn.Linear(8, 8)
        setattr(self, "x" * 250, nn.Linear(8, 4))

    def forward(self, x):
        return getattr(self, "x" * 250)(torch.relu(self.größe(x)))


class EvalOfNothing(nn.Sequential):
    def eval(self):
        super().eval()


def normed(kernel):
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.1
    return nn.Sequential(nn.Conv2d(3, 4, kernel, padding="same"), norm)


def layers(**others):
    return {"a": nn.Linear(8, 8), "b": nn.Linear(8, 4)} | others


CAUSAL = torch.full((6, 6), -1e9).triu(1)
HIDES = torch.tensor([False, False, True, False, True, True])
RIGHT = {
    "a column added to a column": (lambda: Net(columns, **layers()), (8,)),
    "a write through a cast that is none": (lambda: Net(cast_that_is_none, **layers()), (8,)),
    "a write into a cast that copies": (lambda: Net(cast_that_copies, **layers()), (8,)),
    "a value and its function, one of which is read rounded": (
        lambda: Net(read_rounded_and_not, **layers()), (8,)),
    "the larger of both": (lambda: Net(larger_of_a_value_and_its_function, **layers()), (8,)),
    "a write where values decide": (lambda: Net(written_where_negative, **layers()), (8,)),
    "addcdiv of values": (
        lambda: Net(lambda m, x: torch.addcdiv(x, m.a(x), x.abs() + 1, value=0.5), **layers()),
        (8,)),
    "addcdiv of a constant": (
        lambda: Net(lambda m, x: torch.addcdiv(m.a(x), x, torch.arange(1.0, 9.0)), **layers()),
        (8,)),
    "a mask that is scaled with the scores": (
        lambda: Held(mask_before_the_scale, qkv=nn.Linear(8, 24), mask=CAUSAL), (6, 8)),
    "a maximum over what is not filled": (
        lambda: Held(largest_of_the_shown, hides=HIDES, **layers()), (6, 8)),
    "a maximum over what no mask hides": (
        lambda: Held(largest_of_the_others, hides=HIDES, **layers()), (6, 8)),
    "same padding of an even kernel, and BatchNorm": (lambda: normed(2), (3, 6, 6)),
    "names of other alphabets, and long ones": (Named, (8,)),
    "eval() that returns nothing": (lambda: EvalOfNothing(nn.Linear(8, 4)), (8,)),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_it_means_what_it_does_in_torch(name):
    torch.manual_seed(0)
    make, shape = RIGHT[name]
    model, x = make(), torch.randn(64, *shape)
    model.eval()
    graph = quantize(model, x)
    with torch.no_grad():
        want = model(x.clone()).numpy()
    assert relative_error(reference.run(graph, x.numpy()), want) < 0.05


def test_a_constant_far_from_zero_on_a_fine_grid_is_as_wide_as_its_zero_point():
    """All that lies on it fits int8, and its zero point does not."""

    def padded(m, x):
        return functional.pad(m.a(x), (-1, 2), value=0.5)

    torch.manual_seed(0)
    model, x = Net(padded, a=nn.Linear(4, 8)), torch.rand(48, 4)
    graph = quantize(model, x, mode="weight-only")
    with torch.no_grad():
        assert relative_error(reference.run(graph, x.numpy()), model(x).numpy()) < 0.02
    q = np.random.default_rng(0).integers(-128, 128, (16, 4)).astype(np.int8)
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    assert np.array_equal(session.run(None, {"x": q})[0], reference.run_int(graph, q))


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None


def test_a_dataclass_of_one_tensor():
    torch.manual_seed(0)
    model, x = Net(lambda m, x: Answer(m.a(x)), a=nn.Linear(8, 4)), torch.randn(64, 8)
    made = reference.run(quantize(model, x), {"x": x.numpy()})["logits"]
    assert relative_error(made, model(x).logits.detach().numpy()) < 0.03


@pytest.mark.parametrize("place", ["list", "dict", "attribute"])
def test_what_a_hook_keeps_stays_out_of_the_user_s_module(place):
    """Its closure keeps values in the module it was written for, whatever copy of it runs."""

    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.seen, self.by_name = nn.Linear(8, 4), [], {}
            self.last = None
            keep = {
                "list": self.seen.append,
                "dict": lambda made: self.by_name.update(a=made),
                "attribute": lambda made: setattr(self, "last", made),
            }[place]
            self.a.register_forward_hook(lambda _, __, made: keep(made))

        def forward(self, x):
            return self.a(x)

    torch.manual_seed(0)
    model, x = Hooked(), torch.randn(64, 8)
    model(x[:2])
    before = list(model.seen), dict(model.by_name), model.last
    for _ in range(2):
        graph = quantize(model, x)
    assert list(map(id, model.seen)) == list(map(id, before[0]))
    assert model.by_name.get("a") is before[1].get("a")
    assert model.last is before[2]
    model.seen.clear()
    with torch.no_grad():
        assert relative_error(reference.run(graph, x.numpy()), model(x).numpy()) < 0.03


class NoInit(nn.Module):
    def __init__(self):
        pass

    def forward(self, x):
        return x


REFUSED = {
    "a module without its parent's __init__": (NoInit, "super"),
    "a branch of torch.cond": (
        lambda: Net(lambda _, x: torch.cond(x.sum() > 0, torch.relu, torch.sigmoid, (x,))),
        "torch.where"),
    "a gradient": (
        lambda: Net(lambda m, x: torch.autograd.grad(m.a(x.requires_grad_()).sum(), x)[0],
                    a=nn.Linear(8, 4)), "derivative"),
    "a cast to the type that its weights had": (
        lambda: Net(lambda m, x: m.a(x.half()).float(), a=nn.Linear(8, 4).half()),
        "layer.weight.dtype"),
    "what one sample has none of": (lambda: Net(lambda _, x: functional.pdist(x)), "batch axis"),
    "numpy": (
        lambda: Net(lambda m, x: m.a(torch.from_numpy(np.tanh(x.numpy()))), a=nn.Linear(8, 4)),
        "stay in torch"),
    "quantization by hand": (
        lambda: Net(lambda m, x: torch.quantize_per_tensor(
            m.a(x).float(), 0.1, 0, torch.qint8).dequantize(), a=nn.Linear(8, 4)),
        "before it was quantized"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_a_way_out(name):
    make, way_out = REFUSED[name]
    with pytest.raises(UnsupportedModule, match=way_out):
        quantize(make(), torch.randn(64, 8))


def test_the_way_out_of_a_cast_works():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 4).half(), torch.randn(64, 8)
    graph = quantize(Net(lambda m, x: m.a(x.to(m.a.weight.dtype)).float(), a=layer), x)
    want = layer.float()(x).detach().numpy()
    assert relative_error(reference.run(graph, x.numpy()), want) < 0.03


def test_data_that_fail_by_themselves_and_files_that_are_not_there(tmp_path):
    with pytest.raises(CalibrationError, match="ZeroDivisionError"):
        quantize(nn.Linear(8, 4), (torch.ones(2, 8) / (1 // n) for n in (1, 0)))
    for name in ("none.onnx", "none.pt2", "none.ts"):
        with pytest.raises(MalformedModel, match=f"{name}: got No such file"):
            quantize(tmp_path / name, torch.randn(8, 8))


def test_a_step_that_overflows_is_named():
    torch.manual_seed(0)
    model, x = Net(lambda m, x: torch.exp(m.a(x) * 60), a=nn.Linear(8, 4)), torch.randn(64, 8) * 3
    x[:4] *= 0.01  # the first that are looked at give numbers
    with pytest.raises(CalibrationError, match="exp in the model's own forward"):
        quantize(model, x)


def test_inputs_of_unlike_sizes_are_told_and_the_way_out_works():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 4))
    x = torch.randn(64, 64) * torch.logspace(-2, 2, 64)[:, None]
    with pytest.raises(AccuracyLoss, match="bring each to one size"):
        quantize(model, x)
    x = functional.normalize(x, dim=-1) * 8
    with torch.no_grad():
        assert relative_error(reference.run(quantize(model, x), x.numpy()), model(x).numpy()) < 0.05


def test_a_number_that_takes_the_scale_is_told_and_the_way_out_works():
    hides = torch.rand(6, 8, generator=torch.Generator().manual_seed(0)) > 0.7
    hides[0] = False

    def model(value):
        torch.manual_seed(0)
        fill = value * hides.float()
        return Held(lambda m, x: (m.a(x) + m.fill).amax(1), a=nn.Linear(8, 8), fill=fill)

    x = torch.randn(64, 6, 8, generator=torch.Generator().manual_seed(1))
    with pytest.raises(AccuracyLoss, match="a little beyond them"):
        quantize(model(-1e9), x)
    near = model(-5.0)
    with torch.no_grad():
        assert relative_error(reference.run(quantize(near, x), x.numpy()), near(x).numpy()) < 0.05


def test_all_of_some_hundred_samples_are_compared():
    torch.manual_seed(0)
    model, x = nn.Linear(8, 4), torch.randn(300, 8)
    gate = Gate(model, torch.split(x, 64))
    assert torch.equal(gate.samples_for(quantize(model, x)), x)
    wide = quantize(nn.Linear(2**18, 4), torch.randn(8, 2**18))
    assert len(gate.samples_for(wide)) == len(gate.samples) < 300


def test_what_is_small_beside_the_grid_is_no_rounding_where_float_computes_it():
    got, want = np.zeros((4, 2)), np.ones((4, 2))
    assert judged(got, want, floor=1e9) < 1e-8
    assert judged(got, want, floor=1e9, noise=np.full(2, 1e-6)) == 1.0
    assert judged(got, want, floor=1e9, noise=np.full(2, 2.0)) < 1e-8
