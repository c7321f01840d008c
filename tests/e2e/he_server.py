"""A homomorphic-encryption server in a process of its own, with certificates for every role."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
from patience import ample

from conformance.builder import Net
from secure_quant import Graph
from secure_quant.he.bundle import split
from secure_quant.transport import Tls
from secure_quant.transport.certs import make_all

_MAIN = """
import asyncio, json, os, signal, sys, threading
def follow():
    os.read(0, 1)  # the tests' process is gone, killed perhaps
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=follow, daemon=True).start()
from secure_quant.transport import Tls
from secure_quant_server.common import logs
from secure_quant_server.he import HeOptions, serve_he
chosen = json.loads(sys.argv[1])
logs.setup()
tls = Tls.from_dir(chosen.pop("certs"), "he")
asyncio.run(serve_he(HeOptions(security=tls, **chosen)))
"""


def lenet(seed: int = 3) -> Graph:
    """The shape of LeNet at half its size, with random weights."""
    net = Net(seed, (3, 20, 20), zero_point=-7)
    net.conv(4, (5, 5))
    net.requantize(zero_point=-128)
    net.max_pool((2, 2), (2, 2))
    net.conv(8, (3, 3), padding=(1, 1), stride=(2, 2))
    net.requantize(zero_point=-128)
    net.flatten()
    net.linear(20)
    net.requantize()
    net.linear(10)
    return net.done(per_channel=True)


def inputs(graph: Graph, batch: int, seed: int = 0) -> np.ndarray:
    shape = (batch, *graph.input.shape)
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


class HeServerProcess:
    """Starts on entry, killed on exit. ``options`` go to HeOptions."""

    main, split = _MAIN, staticmethod(split)

    def __init__(self, directory: Path, *graphs: Graph, port: int = 0, **options: Any) -> None:
        self.certs = directory / "certs"
        if not self.certs.exists():
            make_all(self.certs)
        paths = []
        for graph in graphs:
            path = directory / f"{graph.hash}.sqb"
            path.write_bytes(self.split(graph)["server"])
            paths.append(str(path))
        self._options = {"certs": str(self.certs), "bundles": paths, "workers": 1}
        self._options |= {"listen": f"127.0.0.1:{port}"} | options
        self._events: Queue[dict[str, Any]] = Queue()

    def __enter__(self) -> HeServerProcess:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.main, json.dumps(self._options)],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            self.target = self.event("listening")["address"]
            self.event("serving")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [*self.workers(), *self.templates(), self.process.pid]:
            _signal(pid, signal.SIGCONT)
        self.process.kill()
        self.process.wait(ample(10))
        self.process.stdin.close()
        self._reader.join(ample(10))

    def tls(self, role: str = "client") -> Tls:
        return Tls.from_dir(self.certs, role)

    def event(self, name: str, timeout: float = 30.0) -> dict[str, Any]:
        """The next log event of that name."""
        while True:
            try:
                event = self._events.get(timeout=ample(timeout))
            except Empty as error:
                raise AssertionError(f"no event {name!r} in {timeout} s") from error
            if event["event"] == name:
                return event

    def workers(self) -> list[int]:
        """Process ids of the evaluation processes: children of the server's templates."""
        return [worker for template in self.templates() for worker in _children(template)]

    def templates(self) -> list[int]:
        """Process ids of the templates that workers are forked from."""
        return _children(self.process.pid)

    def _read(self) -> None:
        for line in self.process.stderr:
            if line.startswith("{"):
                self._events.put(json.loads(line))
            else:
                sys.stderr.write(line)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(word) for word in text.split()]


def running_calls(metrics: str) -> int:
    """The server's own count of calls in progress."""
    connection = HTTPConnection(metrics, timeout=ample(5))
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    (line,) = [x for x in page.splitlines() if x.startswith("secure_quant_calls_running ")]
    return int(float(line.split()[1]))


def alive(pid: int) -> bool:
    """False for a process that ended, even if nobody has asked for its status yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
