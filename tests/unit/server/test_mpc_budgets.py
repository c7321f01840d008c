"""A query budget at a party is one, however a request names the model."""

from __future__ import annotations

import asyncio
from secrets import token_bytes
from types import SimpleNamespace

import pytest
from patience import ample
from unit.server.support import graph

from secure_quant.errors import BudgetExceeded, ModelNotFound
from secure_quant.mpc.runtime.jobs import Answer, Job
from secure_quant.wire import SHARING
from secure_quant.wire.gen.share_inference_pb2 import InferRequest
from secure_quant_server.common import Budgets, Metrics, Requests
from secure_quant_server.mpc.service import ShareInference
from secure_quant_server.mpc.watches import Watches

GRAPH = graph()


class Counting(SimpleNamespace):
    """Stands for the batcher."""

    done = 0

    async def infer(self, job: Job) -> Answer:
        self.done += 1
        return Answer(job.ids, job.batches, 0, 0, 0, 0, b"")


def service(budget: int) -> tuple[ShareInference, Counting]:
    batcher = Counting()
    options = SimpleNamespace(batch=32, wait_s=5.0)
    front = SimpleNamespace(
        party=0, options=options, batcher=batcher, budgets=Budgets(budget),
        models={GRAPH.hash: SimpleNamespace(graph=GRAPH, model_hash=GRAPH.hash)},
        requests=Requests(Metrics()), watches=Watches({}, lambda *_: None, 1),
    )  # fmt: skip
    return ShareInference(front), batcher  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [("", GRAPH.hash), (GRAPH.hash, "")])
def test_by_hash_and_by_no_name(names: tuple[str, str]) -> None:
    async def test() -> None:
        made, batcher = service(3)
        context = SimpleNamespace(time_remaining=lambda: 5.0)
        found = []
        for name in names * 4:
            request = InferRequest(
                model_hash=name, request_id=token_bytes(16), batch=1, seed=bytes(32),
                sharing=SHARING,
            )  # fmt: skip
            try:
                await made.Infer(request, context)
                found.append(None)
            except (BudgetExceeded, ModelNotFound) as error:
                found.append(type(error))
        by_hash = [each for each, name in zip(found, names * 4, strict=True) if name]
        unnamed = [each for each, name in zip(found, names * 4, strict=True) if not name]
        assert by_hash == [None] * 3 + [BudgetExceeded]
        assert unnamed == [ModelNotFound] * 4  # and so no second budget
        assert batcher.done == 3

    asyncio.run(asyncio.wait_for(test(), ample(20)))
