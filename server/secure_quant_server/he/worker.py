"""One evaluation process: parses what clients send, so that a crash costs one request.

Started as ``python -m secure_quant_server.he.worker FD`` with one end of a socket pair; ends when
the other end is closed.
"""

from __future__ import annotations

import gc
import resource
import select
import signal
import socket
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING

from secure_quant.errors import SecureQuantError
from secure_quant.wire import info_to_proto, to_status
from secure_quant_server.common import logs
from secure_quant_server.he.frames import COUNT, ERROR, LENGTH, OK, REPLY, REQUEST, SOCKET_BUFFER

if TYPE_CHECKING:
    from secure_quant.he.evaluate import Evaluator

__all__ = ["Stock", "describe", "load", "main", "receive", "reply", "reply_error"]

# Longer than a client computes between two layers, so that stock is made between inferences.
IDLE_S = 0.01
STOCK_BYTES = 256 * 2**20
# Four halves of a kind, each with three 8-byte words where an answer has one of about 6 bytes.
BYTES_PER_ANSWERED = 4 * 4

Kind = tuple[int, int, int]
"""(model, step, batch)"""


def main(arguments: list[str]) -> int:
    """Serve until the front hangs up. Status 1 after anything unforeseen: the front starts a new
    process, and nothing of this one's state is trusted again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C reaches the front, which decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no weights in core files
    logs.setup()
    with socket.socket(fileno=int(arguments[0])) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        try:
            evaluators = _start(link)
            stock = Stock(evaluators)
            while _serve_one(link, evaluators, stock):
                pass
        except (ConnectionError, EOFError):
            return 0
        except Exception as error:  # noqa: BLE001  the process ends here
            logs.failure("worker failed", error)
            return 1
    return 0


class Stock:
    """Which input-independent halves to make ahead while nobody waits.

    A kind of call (model, step, batch) is admitted at its first success and stays; once
    ``STOCK_BYTES`` could be in use, no more are, whatever batches clients come with.
    """

    def __init__(self, evaluators: list[Evaluator]) -> None:
        self._evaluators = evaluators
        self._admitted: set[Kind] = set()
        self._bytes = 0
        self._short: OrderedDict[Kind, None] = OrderedDict()

    @property
    def wanted(self) -> bool:
        """Whether there is anything to make."""
        return bool(self._short)

    def note(self, kind: Kind) -> None:
        """A call of this kind was answered: replace what it used up."""
        if kind not in self._admitted:
            model, step, batch = kind
            answer = self._evaluators[model].plan.steps[step].call(batch).cost.bytes_down
            if self._bytes + answer * BYTES_PER_ANSWERED > STOCK_BYTES:
                return
            self._bytes += answer * BYTES_PER_ANSWERED
            self._admitted.add(kind)
        self._short[kind] = None

    def make_one(self) -> None:
        """One more of the kind that waited longest; a full kind is wanted no more."""
        kind, _ = self._short.popitem(last=False)
        model, step, batch = kind
        if self._evaluators[model].prepare(step, batch):
            self._short[kind] = None


def load(bundle: bytes) -> Evaluator:
    """The evaluator of a server bundle. Raises MalformedModel and its kin."""
    from secure_quant.he.bundle import load_server  # only processes that evaluate load the engine

    return load_server(bundle)


def describe(evaluator: Evaluator) -> bytes:
    """The ModelInfo that clients are told, serialized."""
    info = info_to_proto(evaluator.graph, evaluator.plan.to_json())
    return info.SerializeToString(deterministic=True)


def _start(link: socket.socket) -> list[Evaluator]:
    (count,) = COUNT.unpack(receive(link, COUNT.size))
    evaluators = []
    for _ in range(count):
        (length,) = LENGTH.unpack(receive(link, LENGTH.size))
        try:
            evaluators.append(load(bytes(receive(link, length))))
        except SecureQuantError as error:
            reply_error(link, error)
            raise ConnectionError from error
        reply(link, OK, describe(evaluators[-1]))
        for step in range(len(evaluators[-1].plan.steps)):
            evaluators[-1].prepare(step, 1)  # the first request is no slower than the second
    gc.collect()
    gc.freeze()  # models live as long as the process
    return evaluators


def _serve_one(link: socket.socket, evaluators: list[Evaluator], stock: Stock) -> bool:
    """False once the front hung up between two requests."""
    while not select.select([link], [], [], IDLE_S if stock.wanted else None)[0]:
        stock.make_one()
    head = link.recv(REQUEST.size)
    if not head:
        return False
    head += receive(link, REQUEST.size - len(head))
    model, step, batch, length = REQUEST.unpack(head)
    ciphertexts = receive(link, length)
    try:
        answer = evaluators[model].evaluate(step, batch, ciphertexts)
    except SecureQuantError as error:
        reply_error(link, error)
    else:
        reply(link, OK, answer)
        stock.note((model, step, batch))
    return True


def reply_error(link: socket.socket, error: SecureQuantError) -> None:
    """Tell the front a named error."""
    details = to_status(error)[2][0][1]
    reply(link, ERROR, details if isinstance(details, bytes) else details.encode())


def reply(link: socket.socket, kind: int, body: bytes) -> None:
    """Tell the front OK and what was made."""
    link.sendall(REPLY.pack(kind, len(body)) + body)


def receive(link: socket.socket, length: int) -> memoryview:
    """Exactly ``length`` bytes; the front already refused what is above the message limit."""
    buffer = bytearray(length)
    view, got = memoryview(buffer), 0
    while got < length:
        more = link.recv_into(view[got:])
        if more == 0:
            raise EOFError
        got += more
    return view


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
