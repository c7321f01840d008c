"""Every role's front killed outright, with a worker that is stopped: nothing of it is left."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.mpc_cluster import kill, restart, small_net, tls, wait_until_served
from e2e.test_mpc_hearts import wait_until
from slow.server.test_survivors import runs, survivors

from secure_quant.he.bundle import split as split_he
from secure_quant.mpc.protocol.bundle import split as split_mpc
from secure_quant.transport.certs import make_all
from secure_quant_cli.cluster import Cluster
from secure_quant_cli.health import is_serving
from secure_quant_cli.processes import descendants

PROCESSES = {"dealer": 0, "party0": 2, "party1": 2, "he": 2}
"""Besides the front: a template and a worker."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    base, graph = tmp_path_factory.mktemp("killed"), small_net(seed=17)
    make_all(base / "certs")
    mpc, he = base / "mpc", base / "he"
    _write(mpc, split_mpc(graph))
    _write(he, split_he(graph))
    with Cluster(base / "certs", base / "logs", {"mpc": mpc, "he": he}) as started:
        yield started


def _write(folder: Path, bundles: dict[str, bytes]) -> None:
    folder.mkdir()
    for role, data in bundles.items():
        (folder / f"{role}.sqb").write_bytes(data)


def of_group(group: int) -> list[int]:
    """Every process of a front's process group, whoever is its parent."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after_name[2]) == group:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("role", list(PROCESSES))
def test_nothing_survives_a_front_that_is_killed(cluster: Cluster, role: str) -> None:
    front = cluster.processes[role].pid
    under = descendants(front)
    assert len(under) == PROCESSES[role]
    if under:
        os.kill(under[-1], signal.SIGSTOP)  # the worker: the template is its parent
    kill(front)
    cluster.processes[role].wait()
    assert survivors(under) == []
    assert [pid for pid in of_group(front) if runs(pid)] == []
    restart(cluster, role)
    if role == "he":
        wait_until(lambda: is_serving(cluster.targets["he"][0], "he", tls(cluster)))
    else:
        wait_until_served(cluster)
