"""What both kinds of evaluation process do: start, load, answer, and end with the front.

Started as ``python -m MODULE FD`` with one end of a socket pair; ends when the other is closed.
"""

from __future__ import annotations

import resource
import signal
import socket
from collections.abc import Callable
from typing import TypeVar

from secure_quant.errors import SecureQuantError
from secure_quant_server.common import logs
from secure_quant_server.he.frames import (
    COUNT,
    LENGTH,
    OK,
    REQUEST,
    SOCKET_BUFFER,
    receive,
    reply,
    reply_error,
)

__all__ = ["Evaluate", "answer_one", "load_all", "run"]

T = TypeVar("T")
Evaluate = Callable[[int, int, int, memoryview], bytes]
"""(model, step, batch, ciphertexts) -> answer. Raises named errors."""


def run(fd: int, serve: Callable[[socket.socket], None], *, memory: int | None = None) -> int:
    """Serve until the front hangs up. Status 1 after anything unforeseen: the front starts a new
    process, and nothing of this one's state is trusted again.

    memory: limit of the address space in bytes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C reaches the front, which decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no weights in core files
    if memory is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        room = memory if hard == resource.RLIM_INFINITY else min(hard, memory)
        resource.setrlimit(resource.RLIMIT_AS, (room, hard))
    logs.setup()
    with socket.socket(fileno=fd) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        try:
            serve(link)
        except (ConnectionError, EOFError):
            return 0
        except Exception as error:  # noqa: BLE001  the process ends here
            logs.failure("worker failed", error)
            return 1
    return 0


def load_all(
    link: socket.socket, load: Callable[[bytes, int], T], describe: Callable[[T], bytes]
) -> list[T]:
    """The models that the front sends; ``load`` is told how many there are.

    Raises ConnectionError once the front was told why one cannot be loaded.
    """
    (count,) = COUNT.unpack(receive(link, COUNT.size))
    loaded: list[T] = []
    for _ in range(count):
        (length,) = LENGTH.unpack(receive(link, LENGTH.size))
        try:
            loaded.append(load(bytes(receive(link, length)), count))
        except SecureQuantError as error:
            reply_error(link, error)
            raise ConnectionError from error
        reply(link, OK, describe(loaded[-1]))
    return loaded


def answer_one(link: socket.socket, evaluate: Evaluate) -> None:
    """One request. Raises EOFError once the front hung up."""
    model, step, batch, length = REQUEST.unpack(receive(link, REQUEST.size))
    ciphertexts = receive(link, length)
    try:
        answer = evaluate(model, step, batch, ciphertexts)
    except SecureQuantError as error:
        reply_error(link, error)
    else:
        reply(link, OK, answer)
