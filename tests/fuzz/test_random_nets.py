"""Random modules: each is refused by name, or right in every respect. `make fuzz` runs more."""

import pytest
import torch
from torch import nn

from fuzz.judge import judge, judge_module
from fuzz.nets import RandomNet
from secure_quant.quantizer import gate, opset, pipeline
from secure_quant.quantizer.gate.steps import is_too_far
from secure_quant.quantizer.lower import arithmetic

aten = torch.ops.aten
AT_A_TIME = 25


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(first, marks=[pytest.mark.heavy] if first >= 100 else [])
        for first in range(0, 500, AT_A_TIME)
    ],
)
def test_no_net_is_wrong_in_silence(first):
    verdicts = [judge(seed) for seed in range(first, first + AT_A_TIME)]
    wrong = [(v.seed, v.why) for v in verdicts if v.kind == "wrong"]
    assert not wrong, "see one: python tools/fuzz_nets.py --net SEED"
    assert sum(v.kind == "taken" for v in verdicts) >= AT_A_TIME // 3


FOUND = {
    70522: "the gate's limit and the judge's differed by a millionth of a step",
    70037: "a convolution with padding 'same' of an even kernel, before BatchNorm",
    46619837: "a constant alone on a grid of 12 bits, whose zero point is no int8",
    46620162: "a value read rounded, and not, by one function",
    920445: "the jumps of a table behind a view were not counted",
}


@pytest.mark.parametrize("seed", FOUND, ids=FOUND.values())
def test_nets_that_were_wrong_once_are_not(seed):
    verdict = judge(seed)
    assert verdict.kind == "taken", verdict.why


def test_the_limit_in_steps_bears_rounding_and_no_more():
    assert not is_too_far(2.000006)
    assert is_too_far(2.01)
    assert is_too_far(float("nan"))


def test_a_seed_is_a_net():
    one, two, three = RandomNet(5), RandomNet(5), RandomNet(6)
    assert one.module.source == two.module.source != three.module.source
    assert torch.equal(one.x, two.x)
    for a, b in zip(one.module.parameters(), two.module.parameters(), strict=True):
        assert torch.equal(a, b)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h - x)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small().eval(), torch.randn(48, 8)


def test_a_right_net_is_taken(small):
    verdict = judge_module(*small)
    assert (verdict.kind, verdict.why, verdict.warned) == ("taken", "", False)
    assert 0 < verdict.error < 0.05


@pytest.fixture
def wrong_capture(monkeypatch):
    """relu is captured as gelu."""
    right = pipeline.capture

    def capture(model, example):
        made = right(model, example)
        for node in made.graph.nodes:
            if node.target is aten.relu.default:
                node.target = aten.gelu.default
        made.recompile()
        return made

    monkeypatch.setattr(pipeline, "capture", capture)


@pytest.mark.usefixtures("wrong_capture")
def test_a_fault_of_capture_is_caught_by_the_gate(small):
    verdict = judge_module(*small)
    assert verdict.kind == "refused"
    assert verdict.why.startswith("CaptureMismatch")


@pytest.mark.usefixtures("wrong_capture")
def test_and_by_the_judge_without_it(small, monkeypatch):
    monkeypatch.setattr(gate.Gate, "check", lambda *_, **__: None)
    verdict = judge_module(*small)
    assert (verdict.kind, verdict.why) == ("wrong", "the captured graph computes something else")


def test_a_fault_of_lowering_is_caught(small, monkeypatch):
    """x - y is lowered as x + y."""

    def add(walk, node):
        node.target = aten.add.Tensor
        return arithmetic.add(walk, node)

    op = opset.OPS[aten.sub.Tensor]
    monkeypatch.setitem(opset.OPS, aten.sub.Tensor, op._replace(lower=add))
    verdict = judge_module(*small)
    assert verdict.kind == "refused"
    assert verdict.why.startswith("AccuracyLoss")


def fails(*_):
    raise KeyError("inside")


def test_a_raw_exception_is_wrong(small, monkeypatch):
    monkeypatch.setattr("fuzz.judge._quantized", fails)
    verdict = judge_module(*small)
    assert verdict.kind == "wrong"
    assert verdict.why.startswith("raw KeyError")


def test_a_refusal_that_only_wraps_one_is_told(small, monkeypatch):
    monkeypatch.setattr(pipeline, "make_quantizer", lambda *_: None)
    monkeypatch.setattr(gate.Gate, "check", fails)
    monkeypatch.setattr(pipeline, "prepare_pt2e", lambda module, *_: module)
    verdict = judge_module(*small)
    assert verdict.kind == "refused"
    assert "wrapped" in verdict.notes
