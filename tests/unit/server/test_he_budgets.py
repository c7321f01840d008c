"""A query budget is one, however a request names the model; uploads of keys are charged, too."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from unit.he.leveled.models import random_model
from unit.server.support import calling, graph, run, serving

from secure_quant.errors import BudgetExceeded, MalformedMessage
from secure_quant.he.leveled import plan
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import (
    EvaluateLinearRequest,
    LeveledInfo,
    OpenSessionRequest,
)
from secure_quant_server.common import Budgets
from secure_quant_server.he.leveled import LeveledModels, _Served

MODEL = random_model((3, 2), seed=1)


def leveled() -> LeveledModels:
    """One model that has no worker."""
    made = LeveledModels([])
    public = MODEL.public()
    info = LeveledInfo(public_model=public.to_json())
    made._models[public.hash] = _Served(0, info, plan(MODEL))
    return made


async def code(call: object) -> type[Exception] | None:
    try:
        await call  # type: ignore[misc]
    except grpc.RpcError as error:
        return type(raised(error))
    return None


@pytest.mark.parametrize("names", [("", graph().hash), (graph().hash, "")])
def test_a_layer_by_hash_and_by_no_name_is_one_budget(names: tuple[str, str]) -> None:
    async def test() -> None:
        async with serving(budgets=Budgets(3)) as server, calling(server) as (stub, _):
            found = [
                await code(
                    stub.EvaluateLinear(
                        EvaluateLinearRequest(model_hash=name, step=0, batch=1, ciphertexts=b"x")
                    )
                )
                for _ in range(3)
                for name in names
            ]
            assert found == [None] * 3 + [BudgetExceeded] * 3

    run(test)


def test_uploads_of_keys_are_charged() -> None:
    def upload(name: str) -> Iterator[OpenSessionRequest]:
        return iter([OpenSessionRequest(model_hash=name, keys=b"x")])

    async def test() -> None:
        options = {"budgets": Budgets(3), "leveled": leveled()}
        async with serving(**options) as server, calling(server) as (stub, _):
            found = [await code(stub.OpenSession(upload(MODEL.hash))) for _ in range(5)]
            assert found == [MalformedMessage] * 3 + [BudgetExceeded] * 2

    run(test)
