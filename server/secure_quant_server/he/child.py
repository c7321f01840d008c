"""What both kinds of evaluation process do: load, answer, and end with the front."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

from secure_quant.errors import MalformedMessage, SecureQuantError
from secure_quant_server.common import last_word
from secure_quant_server.common.messages import (
    Ping,
    Pong,
    error_to_bytes,
    receive_message,
    send_message,
)
from secure_quant_server.he.frames import REQUESTS, Begun, Done, Evaluate, Failed, Load

__all__ = ["EvaluateStep", "answer_one", "load_all", "run"]

T = TypeVar("T")
EvaluateStep = Callable[[int, int, int, bytes | memoryview], bytes]
"""(model, step, batch, ciphertexts) -> answer. Raises named errors."""


def run(link: socket.socket, serve: Callable[[socket.socket], None]) -> int:
    """Serve until the front hangs up; the exit status. What no one foresaw is let out: the process
    ends, and nothing of its state is trusted again."""
    try:
        serve(link)
    except (ConnectionError, EOFError):
        return 0
    return 0


def load_all(
    link: socket.socket, load: Callable[[bytes, int], T], describe: Callable[[T], bytes]
) -> list[T]:
    """The models that the front sends; ``load`` is told how many there are.

    Raises ConnectionError once the front was told why one cannot be loaded.
    """
    loaded: list[T] = []
    while True:
        message = receive_message(link, REQUESTS)
        if isinstance(message, Ping):
            _beat(link)
            continue
        if not isinstance(message, Load):
            raise MalformedMessage("start of a worker", got=type(message).__name__)
        try:
            loaded.append(load(bytes(message.body), message.models))
        except SecureQuantError as error:
            send_message(link, Failed(error_to_bytes(error)))
            raise ConnectionError from error
        send_message(link, Done(describe(loaded[-1])))
        if len(loaded) == message.models:
            return loaded


def _beat(link: socket.socket) -> None:
    last_word.renew()
    send_message(link, Pong())


def answer_one(link: socket.socket, evaluate: EvaluateStep) -> None:
    """One message of the front. Raises EOFError once it hung up."""
    message = receive_message(link, REQUESTS)
    if isinstance(message, Ping):
        _beat(link)
        return
    if not isinstance(message, Evaluate):
        raise MalformedMessage("request of a worker", got=type(message).__name__)
    send_message(link, Begun())
    try:
        answer = evaluate(message.model, message.step, message.batch, message.body)
    except SecureQuantError as error:
        send_message(link, Failed(error_to_bytes(error)))
    else:
        send_message(link, Done(answer))
