"""One suite for every executor: the same graphs, the same inputs, equality to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from conformance import oracle
from conformance.cases import Case, all_cases
from conformance.executors import EXECUTORS
from secure_quant.errors import OpNotSupported

CASES = tuple(all_cases())


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("executor", EXECUTORS, ids=repr)
def test_executor_equals_the_specification(executor, case: Case) -> None:
    if executor.may_refuse & {type(node).__name__ for node in case.graph.nodes}:
        with pytest.raises(OpNotSupported):
            executor.prepare(case.graph)
        return
    prepared = executor.prepare(case.graph)
    for label, q in case.inputs.items():
        truth = oracle.run(case.graph, q)
        got = prepared.run(q)
        assert case.graph.output.name in got
        for name, integers in got.items():
            assert integers.dtype == np.int64
            assert integers.shape == truth[name].shape, (label, name)
            wrong = int((integers != truth[name]).sum())
            assert wrong == 0, f"{label}: {wrong} of {integers.size} integers of {name} differ"


def test_the_cases_hold_every_op_and_both_saturations() -> None:
    from secure_quant.ir.ops import OPS

    seen: set[str] = set()
    low = high = 0
    for case in CASES:
        values = oracle.run(case.graph, case.inputs["random"])
        for node in case.graph.nodes:
            seen.add(type(node).__name__)
            if type(node).__name__ == "Requantize":
                acc = values[node.inputs[0]] * max(node.multiplier)
                low += int((acc + node.offset < 0).sum())
                high += int(((acc + node.offset) >> node.shift >= len(node.table)).sum())
    assert seen == set(OPS)
    assert low > 1000
    assert high > 1000
    assert {case.batch for case in CASES} == set(range(1, 9))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_values_stay_in_the_ranges_the_graph_states(case: Case) -> None:
    for q in case.inputs.values():
        for name, integers in oracle.run(case.graph, q).items():
            value = case.graph.values[name]
            assert integers.shape == (case.batch, *value.shape)
            assert value.range.lo <= integers.min()
            assert integers.max() <= value.range.hi
