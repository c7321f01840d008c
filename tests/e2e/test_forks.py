"""A client in a forked process is told so at once, and shares no secret key with its parent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from e2e.he_server import inputs, lenet
from e2e.test_leveled import MODEL, Server
from patience import ample
from slow.client.forking import in_child
from unit.he.leveled.models import extremes

from secure_quant import reference
from secure_quant.errors import ConfigError
from secure_quant.transport import InsecurePlaintext
from secure_quant_client import AsyncHeClient, HeClient, LeveledClient, MpcClient

GRAPH = lenet()
Q = inputs(GRAPH, 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("forks"), GRAPH) as running:
        yield running


def refused(*uses: Callable[[], Any]) -> bool:
    for use in uses:
        with pytest.raises(ConfigError, match="forked process"):
            use()
    return True


def test_a_prepared_he_client(server: Server) -> None:
    with HeClient(server.target, tls=server.tls(), expected_hash=GRAPH.hash) as client:
        client.prepare()
        stock = client._model.stock
        prepared = list(stock._ready[1])
        assert all(session._keys for session in prepared)

        def child() -> bool:
            gone = not stock._ready and not any(session._keys for session in prepared)
            done = refused(
                lambda: client.infer_int8(Q), lambda: client.infer(Q), client.prepare,
                lambda: client.trace_int8(Q), lambda: client.graph,
            )  # fmt: skip
            client.close()
            return gone and done

        with client._connecting, stock._changed:  # as if other threads were in the midst of it
            assert in_child(child)
        assert np.array_equal(client.infer_int8(Q), reference.run_int(GRAPH, Q))
    assert "session-stock" not in {thread.name for thread in threading.enumerate()}


def test_a_leveled_client(server: Server) -> None:
    x = extremes(MODEL)[3:4]
    with LeveledClient(server.target, tls=server.tls(), expected_hash=MODEL.hash) as client:
        y, keys = client.infer(x), client._sessions.current.keys
        held, free = threading.Event(), threading.Event()

        def hold() -> None:
            with client._turn:
                held.set()
                free.wait(ample(60))

        def child() -> bool:
            gone = client._sessions.current is None and not keys._secret and not keys._ternary.size
            done = refused(
                lambda: client.infer(x), client.prepare, lambda: client.plan,
                lambda: keys.encrypt(x), lambda: keys.decrypt(b""),
            )  # fmt: skip
            client.close()
            return gone and done

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(ample(60))
        try:
            assert in_child(child)
        finally:
            free.set()
            holder.join(60)
        assert np.abs(client.infer(x) - y).max() <= 2 * client.error_bound
        assert client._sessions.current.keys is keys


def test_an_asyncio_client(server: Server) -> None:
    async def use() -> None:
        options = {"tls": server.tls(), "expected_hash": GRAPH.hash}
        async with AsyncHeClient(server.target, **options) as client:
            await client.prepare()

            def child() -> bool:
                def run(make: Callable[[], Any]) -> Any:
                    asyncio.set_event_loop(None)
                    asyncio._set_running_loop(None)
                    return asyncio.run(make())

                return refused(lambda: run(lambda: client.infer_int8(Q)))

            assert in_child(child)
            assert np.array_equal(await client.infer_int8(Q), reference.run_int(GRAPH, Q))

    asyncio.run(use())


def test_a_sharing_client() -> None:
    with MpcClient(["127.0.0.1:1", "127.0.0.1:2"], tls=InsecurePlaintext()) as client:
        assert in_child(lambda: refused(lambda: client.infer_int8(Q)))
