"""A Ray cluster with the application of deploy/ray, in a process of the Python that has Ray."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

from patience import ample

from secure_quant import Graph
from secure_quant.he.bundle import split
from secure_quant_cli.cluster import free_ports

__all__ = ["RAY", "Ray"]

ROOT = Path(__file__).parents[2]
RAY = ROOT / ".ray" / "bin" / "python"
START_S = 120.0


class Ray:
    """The cluster's process, and how to tell it something. arguments: of the application."""

    def __init__(self, folder: Path, graph: Graph, **arguments: Any) -> None:
        bundle = folder / "server.sqb"
        bundle.write_bytes(split(graph)["server"])
        (port,) = free_ports(1)
        self.target = f"127.0.0.1:{port}"
        script = ROOT / "tests" / "e2e" / "ray_cluster.py"
        told = json.dumps({"bundle": str(bundle)} | arguments)
        command = [RAY, script, str(port), told]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT / "deploy" / "ray"), "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0",
        }  # fmt: skip
        self._log = (folder / "ray.log").open("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=environment, start_new_session=True,
        )  # fmt: skip
        self._said("ready", START_S)

    def tell(self, command: str) -> Any:
        """Its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        while not (line := self._line()).startswith(">"):
            print(line)
        return json.loads(line[1:])

    def end(self) -> None:
        if self.process.poll() is not None:
            return
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("end\n")
            self.process.stdin.flush()
            self.process.wait(ample(60))
        finally:
            self.process.kill()
            self.process.communicate()
            self._log.close()

    def _said(self, word: str, seconds: float) -> None:
        timer = threading.Timer(ample(seconds), self.process.kill)
        timer.start()
        try:
            while (line := self._line().strip()) != word:
                print(line)
        finally:
            timer.cancel()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise AssertionError(f"Ray ended: {self._log.read()[-3000:]}")
        return line
