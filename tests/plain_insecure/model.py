"""Plan, bundles and both ends, without I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import Any

import numpy as np
from google.protobuf.wrappers_pb2 import BytesValue
from numpy.typing import NDArray

from secure_quant import reference
from secure_quant.errors import (
    MalformedMessage,
    MalformedModel,
    MessageTooLarge,
    MissingParameters,
    PlanMismatch,
)
from secure_quant.ir import Graph
from secure_quant.ir.artifact import decode, encode, read_tensors, write_tensors
from secure_quant.ir.public import decode_public, encode_public
from secure_quant.reference.executor import check_int8
from secure_quant.wire import info_from_proto
from secure_quant.wire.gen.model_pb2 import ModelInfo
from secure_quant_client.driver import Deadline
from secure_quant_client.program import Call, Program
from secure_quant_client.stats import Inference, InferenceStats
from secure_quant_client.trust import require_plausible

__all__ = ["Cost", "PlainModel", "PlainPlan", "PlainServer", "load_client", "plan", "split"]

FORMAT = "plain-insecure"
MAX_BATCH = 64


@dataclass(frozen=True)
class Cost:
    """Payload bytes of one inference, and its round trips."""

    rounds: int
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class PlainPlan:
    """graph: public."""

    graph: Graph

    def cost(self, batch: int = 1) -> Cost:
        """Of ``batch`` samples."""
        output = self.graph.values[self.graph.output.name]
        return Cost(1, batch * prod(self.graph.input.shape), 8 * batch * prod(output.shape))

    def to_json(self) -> bytes:
        """What a server tells of it."""
        return json.dumps({"engine": FORMAT}).encode()

    @classmethod
    def from_json(cls, data: bytes, graph: Graph) -> PlainPlan:
        """Raises PlanMismatch for any other."""
        made = cls(graph)
        if data != made.to_json():
            raise PlanMismatch("plan", got="another engine's", expected=FORMAT)
        return made


def plan(graph: Graph) -> PlainPlan:
    """Of any graph: nothing is refused."""
    return PlainPlan(graph.public())


def split(graph: Graph) -> dict[str, bytes]:
    """ "server": the whole model. "client": the public graph. Raises MissingParameters."""
    if graph.is_public:
        raise MissingParameters("server bundle", got="a public graph", expected="a whole model")
    return {
        "server": _write("server", graph, encode(graph)),
        "client": _write("client", graph, encode_public(graph)),
    }


class PlainServer:
    """What the server knows: everything."""

    def __init__(self, graph: Graph) -> None:
        self.plan, self._graph = plan(graph), graph
        self.model_hash = graph.hash

    @classmethod
    def load(cls, data: bytes) -> PlainServer:
        """Raises MalformedModel and its kin, InvalidGraph."""
        model, metadata = _read("server", data)
        graph = decode(model, expected_hash=metadata["hash"])
        if graph.is_public:
            raise MalformedModel("server bundle", got="a public graph", expected="a whole model")
        return cls(graph)

    def samples(self, request: bytes) -> int:
        """Raises MalformedMessage, MessageTooLarge."""
        one = self.plan.cost().bytes_up
        if not request or len(request) % one:
            got, expected = f"{len(request)} bytes", f"a multiple of {one}"
            raise MalformedMessage("input", got=got, expected=expected)
        if len(request) // one > MAX_BATCH:
            raise MessageTooLarge("batch", got=len(request) // one, expected=f"<= {MAX_BATCH}")
        return len(request) // one

    def answer(self, request: bytes) -> bytes:
        """Inputs in the clear -> outputs in the clear. Raises as ``samples``."""
        q = np.frombuffer(request, np.int8).reshape(self.samples(request), *self._graph.input.shape)
        return reference.run_int(self._graph, q).astype("<i8").tobytes()


@dataclass(frozen=True)
class PlainModel:
    """What a client knows of a model."""

    plan: PlainPlan

    @classmethod
    def receive(cls, info: ModelInfo, expected_hash: str | None) -> PlainModel:
        """Raises HashMismatch, MalformedModel and its kin, MalformedMessage."""
        received = info_from_proto(info, expected_hash=expected_hash)
        return cls(PlainPlan.from_json(received.plan, received.graph))

    @property
    def graph(self) -> Graph:
        """Public."""
        return self.plan.graph

    @property
    def batch(self) -> int:
        """Most samples of one call."""
        return MAX_BATCH

    def patience_s(self, samples: int) -> float:
        """Next to nothing."""
        return 1.0

    def infer(
        self, q: NDArray[Any], deadline: Deadline, *, watched: bool = False
    ) -> Program[Inference[np.int64]]:
        """int8[batch, *input shape] -> int64[batch, *output shape], MAX_BATCH samples at a time.

        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange, MalformedMessage, ImplausibleAnswer.
        """
        start, rounds, up, down = perf_counter(), 0, 0, 0
        whole = check_int8(self.graph, q).astype(np.int8)
        found: list[NDArray[np.int64]] = []
        for first in range(0, len(whole), MAX_BATCH):
            part = whole[first : first + MAX_BATCH]
            (answer,) = yield [Call("Infer", BytesValue(value=part.tobytes()))]
            found.append(self.opened(answer.value, len(part)))
            rounds, up, down = rounds + 1, up + part.nbytes, down + len(answer.value)
        y = np.concatenate(found)
        require_plausible(self.graph, {self.graph.output.name: y})
        seconds = perf_counter() - start
        return Inference(y, InferenceStats(
            latency=seconds, samples=len(y), rounds=rounds, bytes_up=up, bytes_down=down
        ))  # fmt: skip

    def opened(self, answer: bytes, batch: int) -> NDArray[np.int64]:
        """Raises MalformedMessage for another length than the plan promises."""
        expected = self.plan.cost(batch).bytes_down
        if len(answer) != expected:
            raise MalformedMessage("answer", got=f"{len(answer)} bytes", expected=expected)
        shape = self.graph.values[self.graph.output.name].shape
        return np.frombuffer(answer, "<i8").astype(np.int64).reshape(batch, *shape)


def load_client(data: bytes) -> PlainModel:
    """Raises MalformedModel and its kin, InvalidGraph."""
    public, metadata = _read("client", data)
    try:
        commitment = bytes.fromhex(metadata["commitment"])
    except ValueError as error:
        raise MalformedModel("commitment", got="no hexadecimal digits") from error
    graph = decode_public(public, commitment=commitment)
    if graph.hash != metadata["hash"]:
        raise MalformedModel("model", got=graph.hash, expected=metadata["hash"][:64])
    return PlainModel(PlainPlan(graph))


def _write(role: str, graph: Graph, data: bytes) -> bytes:
    metadata = {
        "format": f"{FORMAT}-{role}/1",
        "hash": graph.hash,
        "commitment": graph.commitment.hex(),
    }
    return write_tensors({"data": np.frombuffer(data, np.uint8)}, metadata)


def _read(role: str, bundle: bytes) -> tuple[bytes, dict[str, str]]:
    tensors, metadata = read_tensors(bundle)
    fields: Sequence[str] = ("format", "hash", "commitment")
    whole = set(tensors) == {"data"} and set(metadata) == set(fields)
    if not whole or metadata["format"] != f"{FORMAT}-{role}/1":
        got = ascii(metadata.get("format", "nothing")[:80])
        raise MalformedModel("bundle", got=got, expected=f"{FORMAT}-{role}/1")
    return tensors["data"].tobytes(), metadata
