"""Several named inputs and outputs through real processes, under both engines."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e.he_server import HeServerProcess
from e2e.mpc_cluster import start, tls

from conformance.builder import Net
from conformance.port_cases import ports
from secure_quant import Graph, reference
from secure_quant.errors import DtypeMismatch, ShapeMismatch, ValueOutOfRange
from secure_quant.ir.policy import with_output
from secure_quant_client import AsyncHeClient, AsyncMpcClient, HeClient, MpcClient


@contextmanager
def _mpc(folder: Path, graph: Graph) -> Iterator[tuple[Any, Any]]:
    with start(folder, graph) as cluster:
        options = {"tls": tls(cluster), "expected_hash": graph.hash}
        with MpcClient(cluster.targets["mpc"], **options) as client:
            yield client, lambda: AsyncMpcClient(cluster.targets["mpc"], **options)


@contextmanager
def _he(folder: Path, graph: Graph) -> Iterator[tuple[Any, Any]]:
    with HeServerProcess(folder, graph, workers=1) as server:
        options = {"tls": server.tls(), "expected_hash": graph.hash}
        with HeClient(server.target, **options) as client:
            yield client, lambda: AsyncHeClient(server.target, **options)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return ports()


@pytest.fixture(scope="module", params=["mpc", "he"])
def clients(
    request: pytest.FixtureRequest, graph: Graph, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Any]]:
    makers: dict[str, Any] = {"mpc": _mpc, "he": _he}
    made: AbstractContextManager[tuple[Any, Any]] = makers[request.param](
        tmp_path_factory.mktemp(request.param), graph
    )
    with made as found:
        yield found


@pytest.fixture
def given() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    return {
        "mask": rng.integers(0, 2, (3, 3)).astype(bool),
        "words": rng.integers(0, 20, (3, 2)),
        "row": rng.normal(0, 2, (3, 10)).astype(np.float32),
        "picture": rng.normal(4, 2, (3, 2, 6, 6)).astype(np.float32),
    }


def _equal(made: dict[str, np.ndarray], graph: Graph, given: dict[str, np.ndarray]) -> None:
    want = reference.run(graph, given)
    assert list(made) == list(want) == [port.name for port in graph.output_ports]
    for name, value in want.items():
        assert made[name].dtype == np.float32
        assert np.array_equal(made[name], value), name


def test_names_in_names_out(clients: Any, graph: Graph, given: dict[str, np.ndarray]) -> None:
    client, _ = clients
    _equal(client.infer(given), graph, given)
    found = client.infer_with_stats(given)
    _equal(found.y, graph, given)
    assert found.stats.samples == 3
    assert [port.name for port in client.graph.input_ports] == ["picture", "row", "mask", "words"]


def test_asyncio(clients: Any, graph: Graph, given: dict[str, np.ndarray]) -> None:
    async def run() -> None:
        async with clients[1]() as client:
            _equal(await client.infer(given), graph, given)

    asyncio.run(run())


def test_integers_are_packed(clients: Any, graph: Graph) -> None:
    q = np.random.default_rng(9).integers(-128, 128, (2, *graph.input.shape)).astype(np.int8)
    assert np.array_equal(clients[0].infer_int8(q), reference.run_int(graph, q))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"mask": np.full((3, 3), 2)}, ValueOutOfRange),
        ({"mask": np.zeros((3, 3))}, DtypeMismatch),
        ({"words": np.full((3, 2), 20)}, ValueOutOfRange),
        ({"words": np.full((3, 2), -1)}, ValueOutOfRange),
        ({"words": np.zeros((3, 2))}, DtypeMismatch),
        ({"words": np.zeros((3, 2, 4), int)}, ShapeMismatch),
        ({"row": np.zeros((2, 10))}, ShapeMismatch),
        ({"other": np.zeros((3, 1))}, ShapeMismatch),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_sent(
    clients: Any, given: dict[str, np.ndarray], change: dict[str, np.ndarray], error: Any
) -> None:
    with pytest.raises(error):
        clients[0].infer(given | change)


def test_an_array_alone_asks_for_names(clients: Any, graph: Graph) -> None:
    with pytest.raises(ShapeMismatch, match="by name"):
        clients[0].infer(np.zeros((1, *graph.input.shape)))


@pytest.mark.heavy
def test_numbers_of_secret_rows_in_and_a_class_out(tmp_path: Path) -> None:
    """Servers get two bytes a number, the client gets an index: under secret sharing alone."""
    net = Net(77, (2 * 3,), scale=1.0)
    net.ids("words", 3, rows=1000)
    net.embedding(16)
    net.flatten()
    net.linear(12)
    graph = with_output(net.joined(net.out("class", per_channel=True)), "argmax")
    numbers = np.random.default_rng(1).integers(0, 1000, (5, 3))
    with _mpc(tmp_path, graph) as (client, _):
        _equal(client.infer({"words": numbers}), graph, {"words": numbers})
        with pytest.raises(ValueOutOfRange, match="words"):
            client.infer({"words": numbers + 1000})
