"""Both halves of the protocol in one process, without a network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from unit.he.models import centred

from secure_quant import reference
from secure_quant.he.evaluate import Evaluator
from secure_quant.he.noise import Scaling
from secure_quant.he.plan import HeCost, HePlan, plan
from secure_quant.ir import Graph
from secure_quant_client.he.ckks import CkksKeys


def infer(
    graph: Graph, evaluator: Evaluator, session: CkksKeys, q: np.ndarray
) -> tuple[np.ndarray, HeCost]:
    """Integers at the Output, and what was sent."""
    public, batch = graph.public(), len(q)
    values = {public.input.name: q.astype(np.int64)}
    sent = HeCost(0, 0, 0, 0)
    for node in public.nodes[1:]:
        step = session.plan.step_of.get(node.name)
        if step is None:
            inputs = [values[name] for name in node.inputs]
            values[node.name] = reference.evaluate(public, node, inputs)
            continue
        request = session.encrypt(step, centred(public, node.inputs[0], values[node.inputs[0]]))
        response = evaluator.evaluate(step, batch, request)
        values[node.name] = session.decrypt(step, batch, response)
        call = session.plan.steps[step].call(batch)
        sent += HeCost(call.ciphertexts_up, call.ciphertexts_down, len(request), len(response))
    return values[public.output.name], sent


def layer(graph: Graph, made: HePlan, q: np.ndarray, **options: int) -> np.ndarray:
    """The only layer's accumulators. options: of the Evaluator."""
    session = CkksKeys(graph.public(), made)
    return infer(graph, Evaluator(graph, made, **options), session, q)[0]


def with_scaling(made: HePlan, **changes: int) -> HePlan:
    """The plan with another scaling in every layout; its bounds may no longer hold."""
    steps = tuple(
        replace(
            step,
            layouts=tuple(
                replace(layout, scaling=Scaling(**{**_fields(layout.scaling), **changes}))
                for layout in step.layouts
            ),
        )
        for step in made.steps
    )
    return replace(made, steps=steps)


def _fields(scaling: Scaling) -> dict[str, int]:
    return {name: getattr(scaling, name) for name in Scaling.__dataclass_fields__}


__all__ = ["infer", "layer", "plan", "with_scaling"]
