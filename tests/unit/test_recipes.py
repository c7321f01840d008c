"""ARCHITECTURE.md's recipes name every file, and what they name holds every op and every engine."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest

from conformance import builder, cases, oracle
from secure_quant.engines import engines, roles
from secure_quant.interop import onnx_export
from secure_quant.ir import ops, rules
from secure_quant.mpc.protocol import plan
from secure_quant.quantizer import opset
from secure_quant.reference import kernels

ROOT = Path(__file__).parents[2]
SEMANTICS = ROOT / "docs" / "spec" / "integer-semantics.md"
BORDERS = (
    ops.Input, ops.InputPort, ops.LookupPort, ops.IdPort, ops.Embedding, ops.OutputPort, ops.Output,
    ops.TopK,
)  # fmt: skip
"""Not of any op of a torch model."""
REFUSED = (ops.DynamicScale, ops.DynamicQuantize)
"""Where scales are known ahead."""


def paths(title: str) -> list[str]:
    """The files and folders in a section's code spans; capitals stand for anything."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r"`([\w.*-]+/[\w./*-]*)`", section)
    return [re.sub(r"\b[A-Z]{2,}\b", "*", path) for path in found]


def is_named(file: Path, recipe: list[str]) -> bool:
    there = str(file.resolve().relative_to(ROOT))
    return any(fnmatch(there, f"{path}*" if path.endswith("/") else path) for path in recipe)


def file_of(module: ModuleType) -> Path:
    assert module.__file__ is not None
    return Path(module.__file__)


@pytest.mark.parametrize("title", ["Adding an op", "Adding an engine"])
def test_every_path_of_a_recipe_leads_somewhere(title: str) -> None:
    recipe = paths(title)
    assert len(recipe) >= 8
    for path in recipe:
        assert list(ROOT.glob(path)), path


def test_the_recipe_names_every_file_of_every_engine() -> None:
    recipe = paths("Adding an engine")
    for row in [*engines(), *roles().values()]:
        for field in dataclasses.fields(row):
            value = getattr(row, field.name)
            if isinstance(value, str) and re.fullmatch(r"[\w.]+:\w+", value):
                file = file_of(importlib.import_module(value.partition(":")[0]))
                assert is_named(file, recipe), f"{row.name}, {field.name}: {file}"
            elif field.name == "spec":
                assert is_named(ROOT / value, recipe), value
    for other in ("secure_quant/engines.py", "tests/conformance/executors.py", "README.md"):
        assert is_named(ROOT / other, [*recipe, "README.md"])


def test_the_recipe_names_every_file_that_knows_all_ops() -> None:
    recipe = paths("Adding an op")
    for module in (ops, rules, kernels, onnx_export, oracle, cases, builder, opset, plan):
        assert is_named(file_of(module), recipe), module.__name__
    assert is_named(SEMANTICS, recipe)


@pytest.mark.parametrize("op", ops.OPS.values(), ids=lambda op: op.__name__)
def test_every_op_is_everywhere(op: type[ops.Node]) -> None:
    assert "=" in (op.__doc__ or "") or len(op.__doc__ or "") > 40
    assert op in rules.RULES
    defined = rf"(\*|^## \d+\. ){op.__name__}(\*|$)"
    assert re.search(defined, SEMANTICS.read_text(), re.MULTILINE)
    assert op in kernels._KERNELS or op is ops.Input
    # An exporter and an engine each has it, or refuses it by name.
    assert (op in onnx_export._RULES) != (op in REFUSED)
    assert op.__name__ in oracles()
    assert (op in plan._MAKERS) != (op in REFUSED)


def oracles() -> set[str]:
    """Names in the patterns of the second implementation's ``match``."""
    tree = ast.parse(file_of(oracle).read_text())
    return {
        case.cls.attr
        for case in ast.walk(tree)
        if isinstance(case, ast.MatchClass) and isinstance(case.cls, ast.Attribute)
    }


def test_every_op_comes_from_some_op_of_torch() -> None:
    made = {op for row in opset.OPS.values() for op in row.makes}
    assert made | {*BORDERS, *ops.DYNAMIC, ops.Requantize} == set(ops.OPS.values())
