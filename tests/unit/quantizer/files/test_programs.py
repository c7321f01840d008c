"""Exported programs, TorchScript and their files give the integers of the module itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secure_quant as sq
from secure_quant.errors import MalformedModel, UnsupportedModule
from secure_quant.quantizer import zoo

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def exported(module: nn.Module, x: torch.Tensor) -> Any:
    return torch.export.export(module, (x[:1],))


def exported_for_any_batch(module: nn.Module, x: torch.Tensor) -> Any:
    sizes = ({0: torch.export.Dim("n")},)
    return torch.export.export(module, (x[:2],), dynamic_shapes=sizes)


def decomposed(module: nn.Module, x: torch.Tensor) -> Any:
    return torch.export.export(module, (x[:4],)).run_decompositions()


def traced(module: nn.Module, x: torch.Tensor) -> Any:
    return torch.jit.trace(module, x[:2])


FORMS: list[Callable[[nn.Module, torch.Tensor], Any]] = [
    exported, exported_for_any_batch, decomposed, traced, lambda m, _: torch.jit.script(m),
]  # fmt: skip
NAMES = ["exported", "any-batch", "decomposed", "traced", "scripted"]


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_a_convolutional_net(form) -> None:
    torch.manual_seed(1)
    module, x = zoo.LeNet().eval(), torch.randn(16, 3, 32, 32)
    same_integers(module, form(module, x), x)


@pytest.mark.parametrize("form", [FORMS[0], FORMS[3]], ids=["exported", "traced"])
def test_a_transformer(form) -> None:
    torch.manual_seed(1)
    module, x = zoo.TransformerEncoder().eval(), torch.randn(16, 16, 64)
    same_integers(module, form(module, x), x)


def same_integers(module: nn.Module, form: Any, x: torch.Tensor) -> None:
    got, wanted = (sq.quantize(each, x) for each in (form, module))
    ours, theirs = (sq.reference.run(graph, x.numpy()) for graph in (got, wanted))
    np.testing.assert_array_equal(ours, theirs)


def test_files(tmp_path) -> None:
    torch.manual_seed(1)
    module, x = zoo.mlp().eval(), torch.randn(16, 64)
    torch.export.save(exported(module, x), tmp_path / "m.pt2")
    torch.jit.save(traced(module, x), tmp_path / "m.ts")
    for name in ("m.pt2", "m.ts"):
        same_integers(module, str(tmp_path / name), x)
    for name in ("broken.pt2", "broken.ts"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(MalformedModel, match="broken"):
            sq.quantize(tmp_path / name, x)


def test_layers_of_a_program_keep_their_names() -> None:
    module, x = zoo.LeNet().eval(), torch.randn(16, 3, 32, 32)
    names = [node.name for node in sq.quantize(exported(module, x), x).nodes]
    assert {"conv1", "conv2", "fc1"} <= set(names)


def test_a_program_whose_batch_cannot_be_freed_is_refused_by_name() -> None:
    class Fixed(nn.Module):
        def forward(self, x):
            return x.transpose(0, 1).reshape(6, 4).transpose(0, 1)

    program = torch.export.export(Fixed(), (torch.randn(4, 6),))
    with pytest.raises(sq_errors()):
        sq.quantize(program, torch.randn(16, 6))


def sq_errors() -> tuple[type[Exception], ...]:
    from secure_quant.errors import CalibrationError, CaptureMismatch

    return (UnsupportedModule, CaptureMismatch, CalibrationError)
