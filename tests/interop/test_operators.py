"""Models of one operator: every eighth is judged here, all by `bench/model_coverage.py --ops`."""

import pytest
import torch

from fuzz.judge import judge_module
from interop.operators import REFUSED, ROWS, samples
from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer import quantize

RIGHT = ROWS[3::8]


def made(row):
    torch.manual_seed(0)
    return row.make().eval(), samples(row)


def test_rows_are_told_apart():
    names = [(row.family, row.name) for row in (*ROWS, *REFUSED)]
    assert len(set(names)) == len(names) > 200


@pytest.mark.parametrize("row", RIGHT, ids=lambda row: f"{row.family}: {row.name}")
def test_it_is_right_or_refused_by_name(row):
    verdict = judge_module(*made(row))
    assert verdict.kind != "wrong", verdict.why
    assert verdict.kind == "taken" or row.family == "moves", verdict.why


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_what_has_no_integer_meaning_says_what_to_do(row):
    with pytest.raises(UnsupportedModule) as caught:
        quantize(*made(row))
    assert caught.value.hint
    assert "docs/quantization.md" not in caught.value.hint
