"""A network, and a dealer and two parties that serve it, for all tests of a module.

A module may state ``SEED``, of its network, and ``told(folder)``: what ``start`` is told besides.
"""

from collections.abc import Iterator

import pytest
from e2e.mpc_cluster import small_net, start

from secure_quant import Graph
from secure_quant_cli.cluster import Cluster


@pytest.fixture(scope="module")
def graph(request: pytest.FixtureRequest) -> Graph:
    return small_net(getattr(request.module, "SEED", 5))


@pytest.fixture(scope="module")
def cluster(
    graph: Graph, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder, told = tmp_path_factory.mktemp("mpc"), getattr(request.module, "told", None)
    with start(folder, graph, **(told(folder) if told else {})) as started:
        yield started
