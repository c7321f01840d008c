"""One process that evaluates leveled models: all that unpacks what their clients send.

Spoken to like ``secure_quant_server.he.worker``; ``step`` says what the bytes are. Its address
space is limited, so that no request can take the memory of the machine.
"""

from __future__ import annotations

import gc
import socket

from secure_quant.errors import MalformedMessage
from secure_quant.he.leveled.bundle import load_server
from secure_quant.he.leveled.evaluate import LeveledEvaluator, LoadedKeys
from secure_quant.wire.gen.secure_inference_pb2 import LeveledInfo
from secure_quant_server.he.child import answer_one, load_all, run
from secure_quant_server.he.leveled import EVALUATE, OPEN

__all__ = ["serve"]


def serve(link: socket.socket) -> int:
    """Entry point of the process; see ``run``."""
    return run(link, _serve)


class _Worker:
    """The models, and the one session whose keys are loaded."""

    def __init__(self, evaluators: list[LeveledEvaluator]) -> None:
        self._evaluators = evaluators
        self._session: LoadedKeys | None = None

    def answer(self, model: int, step: int, batch: int, data: bytes | memoryview) -> bytes:
        """See ``EvaluateStep``; ``batch`` says nothing here."""
        if step == OPEN:
            self._session = None  # its memory first
            gc.collect()
            self._session = self._evaluators[model].open(data)
            return b""
        if step != EVALUATE or self._session is None:
            raise MalformedMessage("request", got=f"step {step}", expected="an open session")
        return self._session.evaluate(data)


def _load(bundle: bytes, models: int) -> LeveledEvaluator:
    return load_server(bundle)


def _describe(evaluator: LeveledEvaluator) -> bytes:
    plan = evaluator.plan
    info = LeveledInfo(public_model=plan.public.to_json(), plan=plan.to_json())
    return info.SerializeToString(deterministic=True)


def _serve(link: socket.socket) -> None:
    worker = _Worker(load_all(link, _load, _describe))
    while True:
        answer_one(link, worker.answer)
