"""docs/quantization.md names what the code can do."""

import re
from pathlib import Path
from typing import get_args

import pytest
from torch import nn

from secure_quant.quantizer import Clip, KMeans, Log, Uniform, api, observers, opset
from secure_quant.quantizer.schemes import make_scheme

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "quantization.md").read_text()
USED = TEXT.split("## What can be used")[1].split("\n## ")[0].lower()
SYNONYMS = {
    "add": "a + b", "index_select": "index", "bmm": "@", "clamp_max": "clamp", "clamp_min": "clamp",
    "floor_divide": "//",
    "mT": "transpose", "matmul": "@", "mul": "a * b", "positions": "by position", "rsub": "−",
    "split_with_sizes": "split",
    "sub": "a − b", "t": "transpose",
}  # fmt: skip


@pytest.mark.parametrize("op", sorted({str(op).split(".")[1] for op in opset.OPS}))
def test_every_op_is_in_the_table(op):
    name = SYNONYMS.get(op, op)
    assert name in USED or name.replace("_", "") in USED


@pytest.mark.parametrize("mode", get_args(api.Mode))
def test_every_mode(mode):
    assert f'"{mode}"' in TEXT


@pytest.mark.parametrize("calibrator", get_args(observers.Calibrator))
def test_every_calibrator(calibrator):
    assert f'"{calibrator}"' in TEXT


@pytest.mark.parametrize("kind", [Uniform, Clip, KMeans, Log])
def test_every_scheme(kind):
    assert f"`{kind.__name__}()`" in TEXT
    assert make_scheme(kind.__name__.lower()) == kind()
    assert f'"{kind.__name__.lower()}"' in TEXT


def test_modules_that_are_named_exist():
    names = re.findall(r"\b[A-Z]\w*(?:1d|2d|ELU|LU)\d?\b", TEXT)
    assert len(names) > 8
    assert [name for name in names if not hasattr(nn, name)] == []


def test_hints_point_here():
    from secure_quant.quantizer import refuse

    for page in re.findall(r"docs/[\w/-]+\.md", Path(refuse.__file__).read_text()):
        assert (ROOT / page).exists()
