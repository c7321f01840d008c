"""Nodes with everything filled in, to be changed one field at a time."""

from __future__ import annotations

from secure_quant.ir import ops


def src(shape=(4,), **other) -> ops.Input:
    return ops.Input(**{"name": "x", "shape": shape, "scale": 1.0, "zero_point": 0, **other})


def end(read: str, **other) -> ops.Output:
    return ops.Output(**{"name": "y", "inputs": (read,), "scale": 1.0, **other})


def linear(**other) -> ops.Linear:
    fields = {
        "name": "fc", "inputs": ("x",), "in_features": 4, "out_features": 2, "bias": False,
        "bound": 2**16, "scale": 1.0,
    }  # fmt: skip
    return ops.Linear(**{**fields, **other})


def conv(**other) -> ops.Conv2d:
    fields = {
        "name": "c", "inputs": ("x",), "in_channels": 2, "out_channels": 4, "kernel": (3, 3),
        "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "bias": False,
        "bound": 2**20, "scale": 1.0,
    }  # fmt: skip
    return ops.Conv2d(**{**fields, **other})


def requantize(**other) -> ops.Requantize:
    fields = {
        "name": "q", "inputs": ("x",), "multiplier": (1,), "axis": -1, "offset": 0, "shift": 0,
        "table": (0, 1), "scale": 1.0, "zero_point": 0,
    }  # fmt: skip
    return ops.Requantize(**{**fields, **other})


def pool(op=ops.MaxPool, **other):
    fields = {"name": "p", "inputs": ("x",), "kernel": (2, 2), "stride": (1, 1), "padding": (0, 0)}
    if op is ops.SumPool:
        fields |= {"bound": 2**20, "scale": 1.0}
    return op(**{**fields, **other})


def binary(op, **other):
    fields = {"name": "b", "inputs": ("x", "x"), "bound": 2**20, "scale": 1.0}
    if op is ops.Add:
        fields["factors"] = (1, 1)
    if op is ops.MatMul:
        fields["transpose_b"] = True
    return op(**{**fields, **other})
