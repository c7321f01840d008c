"""How long a party waits: for the other share what its operator says, for the answer what its
caller says, or what the model's work may take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from unit.server.support import graph

from secure_quant.ir.effort import between_parties_s
from secure_quant.mpc.protocol.plan import plan
from secure_quant_server.mpc.service import ShareInference

GRAPH = graph()


def times(left: float | None, samples: int = 1) -> tuple[float, float]:
    front = SimpleNamespace(party=0, options=SimpleNamespace(batch=32, wait_s=10.0))
    program = SimpleNamespace(graph=GRAPH, plan=plan(GRAPH))
    context = SimpleNamespace(time_remaining=lambda: left)
    service = ShareInference(front)  # type: ignore[arg-type]
    return service._times(context, program, samples)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("left", "expected"), [(400.0, (10.0, 400.0)), (4.0, (4.0, 4.0)), (-1.0, (0.0, 0.0))]
)
def test_a_caller_who_states_a_time_has_it(left: float, expected: tuple[float, float]) -> None:
    assert times(left) == expected


def test_others_have_what_our_clients_would_give() -> None:
    assert times(None) == (10.0, 40.0)
    each = between_parties_s(GRAPH, plan(GRAPH).rounds, 0.1)
    assert times(None, samples=1000) == (10.0, 10.0 + 1000 * each)
