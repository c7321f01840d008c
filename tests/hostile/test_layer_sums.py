"""The axis of an Add in files: written where it is not the last, and in one spelling."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from conformance import sum_cases
from secure_quant.errors import MalformedModel
from secure_quant.ir import public


def test_an_axis_stands_where_it_is_not_the_last():
    """Add's came with version 4: other files are as they were, and there is one spelling."""
    for build, version in ((sum_cases.residual_block, 4), (sum_cases.sums_by_channel, 1)):
        graph = build()
        parts = public.to_parts(graph)
        text = json.loads(parts.graph)
        assert text["version"] == version
        axes = [record.get("axis") for record in text["nodes"] if record["op"] == "Add"]
        assert {axis for axis in axes if axis is not None} == ({0, -3} if version == 4 else set())
        again = public.from_parts(parts, commitment=graph.commitment)
        assert again.hash == graph.hash
        bare = next(r for r in text["nodes"] if r["op"] == "Add" and "axis" not in r)
        bare["axis"] = -1
        told = json.dumps(text, sort_keys=True, separators=(",", ":")).encode()
        with pytest.raises(MalformedModel, match="canonical"):
            public.from_parts(replace(parts, graph=told), commitment=graph.commitment)
