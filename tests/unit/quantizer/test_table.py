"""The table of ops: every row is complete, reachable, and means in ONNX what it means here."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import Net, follows

from secure_quant.errors import UnsupportedModule
from secure_quant.interop import onnx_export
from secure_quant.ir import ops
from secure_quant.quantizer import opset, pipeline, quantize
from secure_quant.quantizer.opset import OPS, Kind

aten = torch.ops.aten

NO_ONNX_FORM = dict.fromkeys(ops.DYNAMIC, "64-bit products of run-time scales")


@pytest.mark.parametrize("target", OPS, ids=str)
def test_every_row_is_complete(target):
    op = OPS[target]
    assert isinstance(op.kind, Kind)
    assert callable(op.lower)
    assert op.makes
    for made in op.makes:
        assert (made in onnx_export._RULES) != (made in NO_ONNX_FORM)


def test_every_kind_is_a_set_of_its_own():
    kinds = (opset.PRODUCTS, opset.SUMS, opset.ADDITIVE, opset.ELEMENTWISE, opset.SHAPING,
             opset.MONOTONE, opset.CONCAT)  # fmt: skip
    assert sum(map(len, kinds)) == len(OPS) == len(set().union(*kinds))
    assert opset.WEIGHTED < opset.PRODUCTS


# What reaches the annotator; each line is an op of the table, under the name that users write.
FUNCTIONS = [
    torch.abs, torch.atan, torch.cos, torch.erf, torch.exp, torch.expm1, torch.neg, torch.relu,
    torch.sigmoid, torch.sin, torch.tanh, torch.square,
    functional.celu, functional.elu, functional.gelu, functional.hardsigmoid,
    functional.hardswish, functional.hardtanh, functional.leaky_relu, functional.logsigmoid,
    functional.mish, functional.relu6, functional.selu, functional.silu, functional.softplus,
    functional.softshrink,
    lambda h: h.clamp(-1, 1), lambda h: torch.clamp_max(h, 1), lambda h: torch.clamp_min(h, 0),
    lambda h: functional.threshold(h, 0.1, 0.0), lambda h: h**3, lambda h: torch.rsub(h, 2.0),
    lambda h: (h.abs() + 1).log(), lambda h: h.abs().log1p(), lambda h: (h.abs() + 1).reciprocal(),
    torch.asinh, torch.cosh, torch.erfc, torch.exp2, torch.nan_to_num, torch.sinc, torch.sinh,
    lambda h: (h / 4).sin().acos(), lambda h: (h.abs() + 1).acosh(),
    lambda h: (h.sin() / 2).asin(), lambda h: (h.sin() / 2).atanh(),
    lambda h: (h.sin() / 2).erfinv(), lambda h: h.sigmoid().logit(), lambda h: (h / 4).tan(),
    lambda h: (h.abs() + 1).log2(), lambda h: (h.abs() + 1).log10(), lambda h: 2**h,
    lambda h: (h.abs() + 1) ** h, lambda h: torch.maximum(h, h / 2),
    lambda h: torch.max(h, h / 3), lambda h: torch.minimum(h, h / 2), lambda h: torch.min(h, -h),
    lambda h: torch.xlogy(h.abs() + 1, h.abs() + 1), lambda h: (h.abs() + 1).rsqrt(),
    lambda h: (h.abs() + 1).sqrt(), lambda h: h / (h.abs() + 1),
    lambda h: torch.atan2(h, h.abs() + 1), torch.deg2rad, torch.rad2deg, torch.i0,
    lambda h: torch.digamma(h.abs() + 1), lambda h: torch.lgamma(h.abs() + 1),
    lambda h: torch.logaddexp2(h, h / 2), lambda h: torch.special.entr(h.abs()),
    torch.special.erfcx, torch.special.i0e, torch.special.i1, torch.special.i1e,
    torch.special.log_ndtr, torch.special.ndtr, lambda h: torch.special.ndtri(h.sigmoid()),
    lambda h: torch.special.xlog1py(h, h.abs()), lambda h: torch.copysign(h, -1.0),
    lambda h: torch.copysign(h, -torch.ones(8)), lambda h: torch.round(h, decimals=1),
]  # fmt: skip
JUMPS = [
    torch.ceil, torch.floor, torch.frac, torch.round, torch.sign, torch.trunc,
    functional.hardshrink, lambda h: h % 2, lambda h: torch.fmod(h, 2.0), lambda h: h // 2,
    lambda h: torch.div(h, 2, rounding_mode="trunc"),
    lambda h: torch.remainder(h, torch.full((8,), 2.0)),
    lambda h: torch.fmod(h, torch.full((8,), 2.0)),
    lambda h: torch.heaviside(h, torch.tensor(0.5)),
]  # fmt: skip


def functions(net, x):
    h = net.a(x)
    return net.b(torch.cat([function(h) for function in FUNCTIONS], -1))


def jumps(net, x):
    h = net.a(x)
    return net.b(torch.cat([function(h) for function in JUMPS], -1))


def pairs(net, x):
    a, b = net.a(x), net.c(x)
    return net.d(a * b + torch.rsub(a, b) - (a - b).relu() * b.mean(-1, keepdim=True))


def sums(net, x):
    h = net.a(x.unflatten(1, (2, 4)))
    return net.d((h.mean(1) + h.sum(1) + h.amax(1)).relu())


def images(net, x):
    h = functional.max_pool2d(net.conv(net.same(x)), 2)
    h = torch.cat([functional.avg_pool2d(h, 2), functional.adaptive_avg_pool2d(h, 2)], 1)
    rows = net.rows_same(net.rows(h.flatten(2)))
    return torch.bmm(rows, rows.transpose(1, 2)) @ rows


def moves(net, x):
    h = net.a(x).reshape(-1, 2, 4)
    one, two = h.chunk(2, -1)
    three, four = h.split([1, 3], -1)
    five, six = h.split(2, -1)
    seven, eight = h.unbind(1)
    nine = h.unsqueeze(1).permute(0, 3, 1, 2).squeeze(2).mT.transpose(1, 2)
    parts = [one, two, three, four, five, six, seven, eight, nine, h[:, 1:], h[:, 0]]
    parts.append(h[:, [0, 1, 0], [3, 0, 1]])
    parts.append(h * torch.linspace(0.5, 1.5, 8).reshape(2, 4))
    parts.append(net.d(h[:, :1]).unsqueeze(1).squeeze((1, 2)))
    return net.b(torch.cat([part.flatten(1) for part in parts], -1))


def bare(net, x):
    return net.a(x).relu().unsqueeze(1).squeeze()


def layers():
    torch.manual_seed(1)
    return {"a": nn.Linear(8, 8), "c": nn.Linear(8, 8), "d": nn.Linear(8, 3)}


torch.manual_seed(1)
CASES = [
    (functions, (8,), {"b": nn.Linear(8 * len(FUNCTIONS), 3)}),
    (jumps, (8,), {"b": nn.Linear(8 * len(JUMPS), 3)}),  # rounding before a jump moves it
    (pairs, (8,), {}),
    (sums, (8,), {"a": nn.Linear(4, 8)}),
    (images, (2, 8, 8), {
        "same": nn.Conv2d(2, 2, 3, padding="same"), "conv": nn.Conv2d(2, 2, 3, padding=1),
        "rows": nn.Conv1d(4, 4, 3, padding=1), "rows_same": nn.Conv1d(4, 4, 3, padding="same"),
    }),
    (moves, (8,), {"d": nn.Linear(4, 3), "b": nn.LazyLinear(3)}),
    (bare, (8,), {}),
]  # fmt: skip


def test_every_row_is_reached_and_right(monkeypatch):
    seen: set[object] = set()

    def prepare(module, quantizer):
        seen.update(n.target for n in module.graph.nodes if n.target in OPS)
        return inner(module, quantizer)

    inner = pipeline.prepare_pt2e
    monkeypatch.setattr(pipeline, "prepare_pt2e", prepare)
    made: set[type[ops.Node]] = set()
    for forward, shape, own in CASES:
        model, x = Net(forward, **layers() | own).eval(), torch.randn(64, *shape)
        with torch.no_grad():
            model(x)
        graph = follows(model, x, bound=0.25 if forward is jumps else 0.1)
        made.update(type(node) for node in graph.nodes)
    assert set(OPS) - seen == set()
    assert {OPS[target].makes[0] for target in seen} - made == set()


def test_a_function_of_two_values_is_refused_before_calibration(monkeypatch):
    row = OPS[aten.mul.Tensor]._replace(kind=Kind.FUNCTION)
    monkeypatch.setitem(OPS, aten.mul.Tensor, row)
    monkeypatch.setattr("secure_quant.quantizer.annotate.ELEMENTWISE", opset._of(Kind.FUNCTION))
    monkeypatch.setattr(pipeline, "apply_scheme", None)  # what comes after the annotator
    model = Net(lambda net, x: net.a(x) * net.c(x), **layers())
    with pytest.raises(UnsupportedModule, match="two values"):
        quantize(model, torch.randn(8, 8))
