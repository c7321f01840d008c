"""Two cells on one machine, or two pairs of one dealer, under load, one of them killed: no wrong
answer, and it goes on."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from e2e.gateway_process import gateway_before
from e2e.mpc_cluster import inputs, kill, small_net, start, tls, wait_until_served
from patience import ample

from secure_quant import reference
from secure_quant.errors import SecureQuantError
from secure_quant.wire import raised
from secure_quant.wire.gen import open_inference_pb2 as pb
from secure_quant.wire.gen.open_inference_pb2_grpc import GRPCInferenceServiceStub
from secure_quant_cli.cluster import Cluster, free_ports
from secure_quant_client import MpcClient

GRAPH = small_net()
CALLERS = 4
PHASE_S = 3.0
Infer = Callable[[np.ndarray], np.ndarray]


class Caller(threading.Thread):
    """Asks without end; notes when each right answer came."""

    def __init__(self, infer: Infer, seed: int, stop: threading.Event) -> None:
        super().__init__()
        self.infer, self.stop = infer, stop
        self.x = inputs(GRAPH, 2, seed).astype(np.float32) * np.float32(GRAPH.input.scale)
        self.want = reference.run(GRAPH, self.x)
        self.right: list[float] = []
        self.wrong = 0
        self.failed: Counter[str] = Counter()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                found = self.infer(self.x)
            except SecureQuantError as error:
                self.failed[type(error).__name__] += 1
                continue
            if np.array_equal(found, self.want):
                self.right.append(time.monotonic())
            else:
                self.wrong += 1


def by_clients(stack: ExitStack, cells: list[Cluster], folder: Path) -> list[Infer]:
    """One client that all callers share."""
    targets = [cell.targets["mpc"] for cell in cells]
    client = stack.enter_context(
        MpcClient(cells=targets, tls=tls(cells[0]), expected_hash=GRAPH.hash)
    )
    return [client.infer] * CALLERS


def by_gateway(stack: ExitStack, cells: list[Cluster], folder: Path) -> list[Infer]:
    """A gateway before both cells."""
    pytest.importorskip("aiohttp")
    options = ["--target", ",".join(cells[1].targets["mpc"]), "--model", f"m={GRAPH.hash}"]
    started = stack.enter_context(gateway_before(cells[0], "mpc", folder, options))
    stub = GRPCInferenceServiceStub(stack.enter_context(grpc.insecure_channel(started.listen)))
    (port,) = GRAPH.input_ports

    def infer(x: np.ndarray) -> np.ndarray:
        request = pb.ModelInferRequest(model_name="m", raw_input_contents=[x.tobytes()])
        request.inputs.add(name=port.name, datatype="FP32", shape=x.shape)
        try:
            answer = stub.ModelInfer(request, timeout=ample(30))
        except grpc.RpcError as error:
            raise raised(error) from error
        found = np.frombuffer(answer.raw_output_contents[0], "<f4")
        return found.reshape(tuple(answer.outputs[0].shape))

    return [infer] * CALLERS


def two_cells(stack: ExitStack, folder: Path) -> list[Any]:
    """Whole ones, each with a dealer."""
    cells: list[Cluster] = []
    for name in ("a", "b"):
        (folder / name).mkdir()
        certs = cells[0].certs if cells else None
        cells.append(stack.enter_context(start(folder / name, GRAPH, certs=certs)))
    return cells


def two_pairs(stack: ExitStack, folder: Path) -> list[Any]:
    """Of one dealer and with the same bundles, as `pairs` of the chart starts them; the first one's
    processes without the dealer's."""
    first = stack.enter_context(start(folder, GRAPH))
    own = [*first.targets["mpc"], first.processes["party0"].args]
    own[2] = own[2][own[2].index("--peer") + 1]
    new = dict(zip(own, (f"127.0.0.1:{port}" for port in free_ports(3)), strict=True))
    second = SimpleNamespace(certs=first.certs, processes={},
                             targets={"mpc": [new[each] for each in own[:2]]})  # fmt: skip
    for role in ("party0", "party1"):
        log = stack.enter_context((folder / f"{role}-1.log").open("wb"))
        process = subprocess.Popen(
            [new.get(word, word) for word in first.processes[role].args],
            stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        stack.callback(process.communicate)
        stack.callback(process.kill)
        second.processes[role] = process
    wait_until_served(second)
    parties = {role: first.processes[role] for role in ("party0", "party1")}
    return [SimpleNamespace(certs=first.certs, processes=parties, targets=first.targets), second]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("several", "way"),
    [(two_cells, by_clients), (two_cells, by_gateway), (two_pairs, by_clients)],
)
def test_one_of_two_is_killed_under_load(several: Any, way: Any, tmp_path: Path) -> None:
    with ExitStack() as stack:
        cells = several(stack, tmp_path)
        stop = threading.Event()
        callers = [
            Caller(infer, seed, stop) for seed, infer in enumerate(way(stack, cells, tmp_path))
        ]
        stack.callback(lambda: [caller.join() for caller in callers])
        stack.callback(stop.set)
        for caller in callers:
            caller.start()
        time.sleep(PHASE_S)
        killed = time.monotonic()
        for process in cells[0].processes.values():
            kill(process.pid)
        until = killed + ample(30)
        while any(not caller.right or caller.right[-1] < killed + PHASE_S for caller in callers):
            assert time.monotonic() < until, [caller.failed for caller in callers]
            time.sleep(0.1)
        stop.set()
        for caller in callers:
            caller.join()
    assert [caller.wrong for caller in callers] == [0] * CALLERS
    failed = sum((caller.failed for caller in callers), Counter[str]())
    after = sum(at > killed for caller in callers for at in caller.right)
    gap = max(min(at for at in caller.right if at > killed) - killed for caller in callers)
    print(f"failed {dict(failed)}, right after the kill {after}, longest gap {gap:.2f} s")
    assert set(failed) <= {"PeerUnavailable", "InternalError", "DeadlineExceeded"}
    assert failed.total() <= 3 * CALLERS  # those under way, and no more
