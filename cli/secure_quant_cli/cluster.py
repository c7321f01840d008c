"""Starts the roles as child processes on loopback, waits until they serve, and always ends them.

Used by ``demo`` and ``bench`` and by the end-to-end tests: the same ``secure-quant serve`` that an
operator runs, with mutual TLS and certificates made for the occasion. Each party has its half of
the cores, as it would have a host of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from secure_quant.engines import find, roles
from secure_quant.errors import DeadlineExceeded, PeerUnavailable
from secure_quant_cli.health import is_serving
from secure_quant_cli.processes import (
    bind_to_half,
    cpu_seconds,
    descendants,
    own_cores,
    peak_memory,
)

__all__ = ["Cluster", "free_ports"]

START_SECONDS = 120.0
STOP_SECONDS = 10.0
PROGRAM = ("-m", "secure_quant_cli")
"""What serves a role; a test of an engine of its own has another."""
KEPT = 16
_kept: deque[ExitStack] = deque()


def free_ports(count: int, run: int = 1) -> list[int]:
    """``count`` loopback TCP ports, each the first of ``run`` consecutive ones, on which nothing
    listens.

    On Linux they stay bound, by sockets that do not listen, until KEPT later calls: the system
    gives them to nobody who asks for any port, and lets listen there who is told of them and sets
    SO_REUSEADDR, as servers do.
    """
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            first = _bind(stack, 0)
            if first and all(_bind(stack, first + i) for i in range(1, run)):
                found.append(first)
        if sys.platform == "linux":
            _kept.append(stack.pop_all())
            if len(_kept) > KEPT:
                _kept.popleft().close()
    return found


def _bind(stack: ExitStack, port: int) -> int | None:
    """The port bound until the stack closes, or None if it is taken."""
    probe = stack.enter_context(socket.socket())
    try:
        probe.bind(("127.0.0.1", port))
        # Only now: before, it would bind beside one that another process keeps like this.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except (OSError, OverflowError):
        return None
    return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """Every role of the engines whose bundles it is given.

    certs     folder as ``secure-quant certs`` writes it.
    logs      folder for one log file per role.
    bundles   engine -> folder as ``secure-quant split`` writes it.
    lanes     of each party. workers: of each role that has such.
    cores     of which each party has its half.
    dial      turns an address that a role listens on into the one its peers dial: a proxy's, say.
    options   more options of ``secure-quant serve``, by role.
    targets   engine -> where clients call it, once started.

    A context manager: on entry everything serves or an error says why not (PeerUnavailable,
    DeadlineExceeded); on exit every process is gone.
    """

    certs: Path
    logs: Path
    bundles: Mapping[str, Path]
    lanes: int = 1
    workers: int = 1
    cores: Sequence[int] = field(default_factory=own_cores)
    dial: Callable[[str], str] = str
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(init=False, default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(init=False, default_factory=dict)
    _logs: list[IO[bytes]] = field(init=False, default_factory=list)

    def __enter__(self) -> Self:
        if not self.processes:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the roles and wait until all of them serve; leaves nothing behind if one fails."""
        self.logs.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process, kindly first."""
        for process in self.processes.values():
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(process, signal.SIGKILL)  # also workers that outlived their parent
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        for log in self._logs:
            log.close()
        self._logs.clear()

    def memory(self) -> dict[str, int | None]:
        """Peak resident bytes of each role so far, its worker processes included."""
        return {role: peak_memory(process.pid) for role, process in self.processes.items()}

    def cpu(self) -> dict[str, float]:
        """CPU seconds of each role so far, and of its worker processes alone as ``ROLE_workers``
        where it has some."""
        made: dict[str, float] = {}
        for role, process in self.processes.items():
            workers = descendants(process.pid)
            spent = sum(cpu_seconds(worker) or 0.0 for worker in workers)
            made[role] = (cpu_seconds(process.pid) or 0.0) + spent
            if workers:
                made[f"{role}_workers"] = spent
        return made

    def _start(self) -> None:
        engines = [find(name) for name in self.bundles]
        # What a role rests on stands behind it in its row.
        started = {role.name: role for each in engines for role in reversed(each.roles)}
        places = {*started, *(each.of for role in started.values() for each in role.addresses)}
        ports = free_ports(len(places), self.lanes)
        at = {name: f"127.0.0.1:{port}" for name, port in zip(sorted(places), ports, strict=True)}
        for role in started.values():
            command = ["--listen", at[role.name]]
            for engine in engines:
                if role in engine.roles:
                    path = self.bundles[engine.name] / f"{role.bundle}.sqb"
                    command += ["--bundle", str(path)]
            for each in role.addresses:
                there = at[each.of] if each.listens else self.dial(at[each.of])
                command += [f"--{each.setting.replace('_', '-')}", there]
            if role.workers is not None:
                count = self.lanes if role.workers == "lanes" else self.workers
                command += [f"--{role.workers}", str(count)]
            self._spawn(role.name, command)
        for engine in engines:
            self.targets[engine.name] = [self.dial(at[name]) for name in engine.called]
        self._wait({name: at[name] for name in started})

    def _spawn(self, role: str, command: Sequence[str]) -> None:
        log = (self.logs / f"{role}.log").open("wb")
        self._logs.append(log)
        full = [sys.executable, *PROGRAM, "serve", role, *command]
        full += ["--tls", str(self.certs), "--until-stdin-closes", *self.options.get(role, ())]
        # Own session: Ctrl-C reaches this process alone, which then ends them in order. Standard
        # input is a pipe that nobody writes to: should this process be killed, it closes.
        self.processes[role] = subprocess.Popen(  # noqa: S603 - our own module
            full, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True, env=_environment(),
        )  # fmt: skip
        bind_to_half(self.processes[role].pid, roles()[role].half, self.cores)

    def _wait(self, addresses: Mapping[str, str]) -> None:
        from secure_quant.transport import Tls

        client = Tls.from_dir(self.certs, "client")
        deadline = time.monotonic() + START_SECONDS
        waiting = dict(addresses)
        while waiting:
            for role, address in list(waiting.items()):
                if self.processes[role].poll() is not None:
                    raise PeerUnavailable(f"{role} ended at its start", got=self._tail(role))
                if is_serving(address, role, client):
                    del waiting[role]
            if time.monotonic() > deadline:
                late = next(iter(waiting))
                what = f"{late} does not serve after {START_SECONDS:.0f} s"
                raise DeadlineExceeded(what, got=self._tail(late))
            time.sleep(0.05)

    def _tail(self, role: str) -> str:
        text = (self.logs / f"{role}.log").read_text(errors="replace").strip()
        return " / ".join(text.splitlines()[-4:]) or "an empty log"


def _environment() -> dict[str, str]:
    # The roles share this machine; one BLAS thread each is what a small model uses best.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return threads | dict(os.environ)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
