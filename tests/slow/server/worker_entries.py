"""A worker that says what it is, for tests; run by a template, so it knows no test."""

from __future__ import annotations

import os
import random
import resource
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from secure_quant.errors import MalformedMessage, MalformedModel
from secure_quant_server.common import last_word
from secure_quant_server.common.messages import (
    Ping,
    Pong,
    Vocabulary,
    receive_message,
    send_message,
)


@dataclass(frozen=True)
class Ask:
    what: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Told:
    facts: tuple[str, ...]
    body: bytes = b""


ASKS, ANSWERS = Vocabulary(Ask), Vocabulary(Told)


def serve(link: socket.socket) -> int:
    """Answer until the front hangs up."""
    while True:
        try:
            message = receive_message(link, ASKS)
        except (EOFError, ConnectionError):
            return 0
        if isinstance(message, Ping):
            last_word.renew()
            send_message(link, Pong())
        else:
            send_message(link, Told(tuple(map(str, FACTS[message.what](message.seconds)))))


def evaluate(link: socket.socket) -> int:
    """An evaluation process: turns bytes around, and does what some of them say."""
    from secure_quant_server.he.child import answer_one, load_all, run

    def load(bundle: bytes, models: int) -> bytes:
        if bundle == b"malformed":
            raise MalformedModel("bundle")
        return bundle

    def answer(model: int, step: int, batch: int, data: bytes) -> bytes:
        if bytes(data) == b"crash":
            os._exit(11)
        if bytes(data) == b"unforeseen":
            raise KeyError("a secret")
        if bytes(data) == b"malformed":
            raise MalformedMessage("ciphertexts")
        if bytes(data) == b"slow":
            time.sleep(1.0)
        if bytes(data) == b"endless":
            _spin(3600.0)  # one that sleeps would be taken to hang
        return bytes(data)[::-1]

    def work(link: socket.socket) -> None:
        load_all(link, load, bytes.upper)
        while True:
            answer_one(link, answer)

    return run(link, work)


def _generators(_: float) -> list[object]:
    import numpy as np

    found: list[object] = [random.random(), np.random.random()]  # noqa: NPY002, S311
    if "torch" in sys.modules:
        found.append(sys.modules["torch"].rand(1).item())
    if "crypten" in sys.modules:
        for devices in sys.modules["crypten"].generators.values():
            found += [each.initial_seed() for each in devices.values()]
    return found


def _process(_: float) -> list[object]:
    core = resource.getrlimit(resource.RLIMIT_CORE)[0]
    room = resource.getrlimit(resource.RLIMIT_AS)[0]
    threads = len(list(Path("/proc/self/task").iterdir()))
    comm = Path("/proc/self/comm").read_text().strip()
    files = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    sockets = sum(_target(path).startswith("socket:") for path in files)
    return [core, room, threads, comm, sockets, sys.flags.safe_path]


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # the descriptor that the folder itself was read by
        return ""


def _spin(seconds: float) -> list[object]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return ["spun"]


def _sleep(seconds: float) -> list[object]:
    time.sleep(seconds)
    return ["slept"]


def _fail(_: float) -> list[object]:
    raise KeyError("a secret")


FACTS = {
    "generators": _generators, "process": _process, "spin": _spin, "sleep": _sleep, "fail": _fail,
}  # fmt: skip
