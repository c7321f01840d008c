"""A query budget is one, however a request names the model; uploads of keys are charged, too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from patience import ample
from unit.he.leveled.models import random_model
from unit.server.support import calling, graph, run, serving, tls

from secure_quant.errors import BudgetExceeded, MalformedMessage
from secure_quant.he.leveled import plan
from secure_quant.he.leveled.wire import key_bytes
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import (
    EvaluateLinearRequest,
    LeveledInfo,
    OpenSessionRequest,
)
from secure_quant_client import AsyncLeveledClient
from secure_quant_server.common import Budgets, admission
from secure_quant_server.he.key_store import KeyStore
from secure_quant_server.he.leveled import LeveledModels, _Served

MODEL = random_model((3, 2), seed=1)
PLAN = plan(MODEL)


def leveled(keys: KeyStore | None = None) -> LeveledModels:
    """One model that has no worker."""
    made = LeveledModels([])
    public = MODEL.public()
    info = LeveledInfo(public_model=public.to_json())
    made._models[public.hash] = _Served(0, info, PLAN)
    made._keys = keys or made._keys
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


def test_streams_of_one_byte_do_not_close_the_leveled_mode_to_others() -> None:
    """The attack over gRPC: mallory's streams stay open, one byte each."""

    async def begin(stub: Any) -> Any:
        call = stub.OpenSession()
        await call.write(OpenSessionRequest(model_hash=MODEL.hash, keys=b"x"))
        return call

    async def upload(stub: Any) -> bytes:
        data = bytes(key_bytes(PLAN))
        pieces = [data[i : i + 2**20] for i in range(0, len(data), 2**20)]
        requests = iter([OpenSessionRequest(model_hash=MODEL.hash, keys=each) for each in pieces])
        return (await stub.OpenSession(requests)).session_id

    async def test() -> None:
        served = leveled(KeyStore(key_bytes(PLAN), 16 * key_bytes(PLAN)))
        async with (
            serving(leveled=served) as server,
            calling(server, tls("client/alice")) as (alice, _),
            calling(server, tls("client/mallory")) as (mallory, _),
            calling(server, tls("client/bob")) as (bob, _),
        ):
            session = await upload(alice)
            calls = [await begin(mallory) for _ in range(45)]
            assert len(await upload(bob)) == len(await upload(alice)) == 16
            assert served._keys.find(session) is not None
            for call in calls:
                call.cancel()

    run(test)


def test_what_uploads_leave_behind_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole ones and those that break off: their pieces are too small to count one by one."""
    given_back: list[bool] = []
    monkeypatch.setattr(admission, "TRIM_S", 0.02)
    monkeypatch.setattr(admission, "give_back_freed_memory", lambda: given_back.append(True))

    async def test() -> None:
        served = leveled(KeyStore(key_bytes(PLAN), 16 * key_bytes(PLAN)))
        async with serving(leveled=served) as server, calling(server) as (stub, _):
            for size in (key_bytes(PLAN), 1000):
                call = stub.OpenSession()
                for start in range(0, size, 2**18):
                    piece = bytes(min(2**18, size - start))
                    await call.write(OpenSessionRequest(model_hash=MODEL.hash, keys=piece))
                assert not given_back
                await call.done_writing()
                await code(call)
                async with asyncio.timeout(ample(5)):
                    while not given_back:
                        await asyncio.sleep(0.01)
                given_back.clear()

    run(test)


def test_a_refused_upload_keeps_its_reason_for_asyncio() -> None:
    """gRPC for asyncio forgets it when it is writing: an upload of megabytes always was."""
    model = random_model((9, 6, 3), seed=1)
    served, public = LeveledModels([]), model.public()
    info = LeveledInfo(public_model=public.to_json(), plan=plan(model).to_json())
    served._models[public.hash] = _Served(0, info, plan(model))
    served._keys = KeyStore(key_bytes(plan(model)))

    async def test() -> None:
        async with serving(leveled=served, budgets=Budgets(1)) as server:
            client = AsyncLeveledClient(
                f"127.0.0.1:{server.port}", tls=tls("client/alice"), expected_hash=model.hash
            )
            async with client:
                await client.prepare(timeout=ample(10))
                for _ in range(4):
                    await client.renew()
                    with pytest.raises(BudgetExceeded):
                        await client.prepare(timeout=ample(10))

    run(test)
