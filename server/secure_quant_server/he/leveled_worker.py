"""One process that evaluates leveled models: all that unpacks what their clients send.

Started and spoken to like ``secure_quant_server.he.worker``; ``step`` says what the bytes are. Its
address space is limited, so that no request can take the memory of the machine.
"""

from __future__ import annotations

import gc
import resource
import signal
import socket
import sys

from secure_quant.errors import MalformedMessage, SecureQuantError
from secure_quant.he.leveled.bundle import load_server
from secure_quant.he.leveled.evaluate import LeveledEvaluator, LeveledSession
from secure_quant.wire.gen.secure_inference_pb2 import LeveledInfo
from secure_quant_server.common import logs
from secure_quant_server.he.frames import COUNT, LENGTH, OK, REQUEST, SOCKET_BUFFER
from secure_quant_server.he.leveled import EVALUATE, OPEN
from secure_quant_server.he.worker import receive, reply, reply_error

__all__ = ["main"]

ADDRESS_SPACE = 6 * 2**30


def main(arguments: list[str]) -> int:
    """Serve until the front hangs up; status 1 after anything unforeseen, such as no memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    room = ADDRESS_SPACE if hard == resource.RLIM_INFINITY else min(hard, ADDRESS_SPACE)
    resource.setrlimit(resource.RLIMIT_AS, (room, hard))
    logs.setup()
    with socket.socket(fileno=int(arguments[0])) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        try:
            worker = _Worker(_start(link))
            while worker.serve_one(link):
                pass
        except (ConnectionError, EOFError):
            return 0
        except Exception as error:  # noqa: BLE001  the process ends here
            logs.failure("worker failed", error)
            return 1
    return 0


class _Worker:
    """The models, and the one session whose keys are loaded."""

    def __init__(self, evaluators: list[LeveledEvaluator]) -> None:
        self._evaluators = evaluators
        self._session: LeveledSession | None = None

    def serve_one(self, link: socket.socket) -> bool:
        """False once the front hung up between two requests."""
        head = link.recv(REQUEST.size)
        if not head:
            return False
        head += receive(link, REQUEST.size - len(head))
        model, step, _, length = REQUEST.unpack(head)
        data = receive(link, length)
        try:
            answer = self._answer(model, step, data)
        except SecureQuantError as error:
            reply_error(link, error)
        else:
            reply(link, OK, answer)
        return True

    def _answer(self, model: int, step: int, data: memoryview) -> bytes:
        if step == OPEN:
            self._session = None  # its memory first
            gc.collect()
            self._session = self._evaluators[model].open(data)
            return b""
        if step != EVALUATE or self._session is None:
            raise MalformedMessage("request", got=f"step {step}", expected="an open session")
        return self._session.evaluate(data)


def _start(link: socket.socket) -> list[LeveledEvaluator]:
    (count,) = COUNT.unpack(receive(link, COUNT.size))
    evaluators: list[LeveledEvaluator] = []
    for _ in range(count):
        (length,) = LENGTH.unpack(receive(link, LENGTH.size))
        try:
            made = load_server(bytes(receive(link, length)))
        except SecureQuantError as error:
            reply_error(link, error)
            raise ConnectionError from error
        evaluators.append(made)
        info = LeveledInfo(public_model=made.plan.public.to_json(), plan=made.plan.to_json())
        reply(link, OK, info.SerializeToString(deterministic=True))
    return evaluators


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
