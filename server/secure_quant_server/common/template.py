"""The warm template that worker processes are forked from: ``python -P -m THIS FD ENTRY MODULE...``

It imports every MODULE, so that a worker has nothing left to import, then forks one worker for
each request on FD, a socket pair of its front. It holds no key, no bundle, no connection, no event
loop and no thread; it opens nothing but FD. ENTRY, ``module:function``, is called in the worker
with its end of a socket pair, which the front sent along and the template closes at once.

Before a worker runs anything it takes fresh seeds: what a generator of random, numpy, torch or
CrypTen held in the template, it would hold in every worker.

A front may be killed at any moment. The template then ends its workers, those that hang or are
stopped too, and itself. It does not rely on the end of FD alone: a fork of the front may hold the
other end. Where it was killed before, what hangs has its last word from ``last_word``.

Where a library has started a thread after all (an operator who gives BLAS several), forking is not
safe, and workers are started cold: another interpreter, the same entry.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from secure_quant_server.common import last_word, logs

__all__ = ["become", "harden", "main", "reseed", "threads"]

NAME_LENGTH = 15
"""Of a process, as Linux shows it."""
PATIENCE_S = 1.0
"""For workers to see by themselves that their front is gone."""
PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Serve the front until it is gone or hangs up; or, cold, be one worker."""
    harden()
    if arguments[0] == "cold":
        become(arguments[2], int(arguments[1]), json.loads(arguments[3]))
    front = os.getppid()
    _when_the_front_dies(signal.SIGKILL)  # an import cannot be asked to end
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    for module in arguments[2:]:
        importlib.import_module(module)
    _name("sq-template")
    gc.collect()
    gc.freeze()  # a collection in a worker need not touch, and so copy, what is shared
    workers: set[int] = set()
    with suppress(ConnectionError):  # the front is gone
        control.send(json.dumps({"ready": True}).encode())
        _serve(control, arguments[1], front, workers)
    _end(workers)


def harden() -> None:
    """No core files with keys or weights in them; signals to a whole group (a terminal's ^C, a
    supervisor's stop) are the front's to act on."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def threads() -> int:
    """Of this process, those of libraries included."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def reseed() -> None:
    """Fresh seeds from the system for every generator that a fork has cloned."""
    if "random" in sys.modules:
        sys.modules["random"].seed(secrets.randbits(256))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed([secrets.randbits(32) for _ in range(16)])
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(secrets.randbits(63))
    if "crypten" in sys.modules:
        for devices in sys.modules["crypten"].generators.values():
            for generator in devices.values():
                generator.manual_seed(secrets.randbits(63))


def become(entry: str, descriptor: int, options: dict[str, Any]) -> NoReturn:
    """Be a worker until the entry returns; its value is the exit status, 1 if it raised."""
    status = 1
    try:
        _name(str(options["name"]))
        memory = options["memory"]
        if memory is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            room = memory if hard == resource.RLIM_INFINITY else min(hard, memory)
            resource.setrlimit(resource.RLIMIT_AS, (room, hard))
        last_word.start(float(options["unheard_s"]))
        logs.setup(str(options["log_level"]))
        reseed()
        module, _, function = entry.partition(":")
        serve: Callable[[socket.socket], int] = getattr(importlib.import_module(module), function)
        with socket.socket(fileno=descriptor) as link:
            status = serve(link)
    except Exception as error:  # noqa: BLE001  the process ends here, and says why
        logs.failure("worker failed", error, worker=options.get("name"))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # nothing that the template registered for its own exit runs here


def _serve(control: socket.socket, entry: str, front: int, workers: set[int]) -> None:
    """workers: process ids of those that live, kept up to date."""
    heard, wake = socket.socketpair()
    for end in (heard, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGCONT):
        signal.signal(number, _noticed)
    _when_the_front_dies(signal.SIGCONT)  # which a template that was stopped gets, too
    try:
        _until_the_front_is_gone(control, entry, front, workers, (heard, wake))
    finally:
        signal.set_wakeup_fd(-1)  # a signal that comes later must not find it closed


def _until_the_front_is_gone(
    control: socket.socket,
    entry: str,
    front: int,
    workers: set[int],
    pair: tuple[socket.socket, socket.socket],
) -> None:
    heard, ours = pair[0], (control, *pair)
    while os.getppid() == front:
        ready, _, _ = select.select([control, heard], [], [])
        if heard in ready:
            heard.recv(4096)
            for pid, status in _buried(workers):
                control.send(json.dumps({"ended": pid, "status": status}).encode())
        if control in ready:
            found = socket.recv_fds(control, 2**16, 1, socket.MSG_CMSG_CLOEXEC)
            data, descriptors = found[:2]
            if not data:
                return
            _start(ours, entry, json.loads(data), descriptors[0], workers)


def _start(
    ours: tuple[socket.socket, ...],
    entry: str,
    options: dict[str, Any],
    descriptor: int,
    workers: set[int],
) -> None:
    warm = threads() == 1
    pid = os.fork() if warm else _cold(entry, options, descriptor)
    if pid == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGCONT):
            signal.signal(number, signal.SIG_DFL)
        for each in ours:
            each.close()
        become(entry, descriptor, options)
    workers.add(pid)
    os.close(descriptor)
    handles = _handles(pid)
    told = json.dumps({"started": pid, "warm": warm}).encode()
    socket.send_fds(ours[0], [told], handles)
    for handle in handles:
        os.close(handle)


def _when_the_front_dies(number: signal.Signals) -> None:
    """Have that signal sent to this process, where the system can. See prctl(2)."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


def _end(workers: set[int]) -> None:
    """Of a front that is gone: first by themselves."""
    end = time.monotonic() + PATIENCE_S
    while workers and time.monotonic() < end:
        for _ in _buried(workers):
            pass
        time.sleep(0.01)
    for pid in workers:  # not waited for yet, so nobody else's
        os.kill(pid, signal.SIGKILL)


def _handles(pid: int) -> list[int]:
    """A descriptor that stands for the process, where there are such: not in every sandbox."""
    try:
        return [os.pidfd_open(pid)]
    except (AttributeError, OSError):
        return []


def _cold(entry: str, options: dict[str, Any], descriptor: int) -> int:
    os.set_inheritable(descriptor, True)
    command = [sys.executable, "-P", "-m", "secure_quant_server.common.template"]
    command += ["cold", str(descriptor), entry, json.dumps(options)]
    return os.posix_spawn(sys.executable, command, os.environ)


def _buried(workers: set[int]) -> Iterator[tuple[int, int]]:
    """Process id and exit status of every worker that ended since."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        workers.discard(pid)
        yield pid, os.waitstatus_to_exitcode(status)


def _noticed(number: int, frame: FrameType | None) -> None:
    """A child or the front ended: the wake-up descriptor tells the loop."""


def _name(name: str) -> None:
    """As ps and top show it."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name[:NAME_LENGTH])


if __name__ == "__main__":
    logs.setup()
    main(sys.argv[1:])
