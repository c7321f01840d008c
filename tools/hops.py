#!/usr/bin/env python3
"""How often an input's way changes rooms in the client, from ``infer`` to the answer.

    python tools/hops.py           a number for each engine
    python tools/hops.py --edges   and which rooms, how often

A room is a module of secure_quant_client. A move is a call, or a generator that goes on, of a
function in another room than the nearest one below it on the stack; the way back is not counted
again. The network and the servers are stand-ins in this process: real public clients send real
requests and get right answers. What is counted is the second inference of one sample, with the
model fetched and keys made ahead, in the thread that asks. The same code gives the same numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import grpc
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from e2e.he_server import inputs, lenet
from unit.he.leveled.models import random_model

from secure_quant import reference
from secure_quant.he import bundle as he_bundle
from secure_quant.he.leveled.plan import plan as plan_leveled
from secure_quant.he.leveled.wire import request_bytes, response_bytes
from secure_quant.ir import Graph
from secure_quant.keystream import Keystream
from secure_quant.transport import InsecurePlaintext
from secure_quant.wire import SHARING, info_to_proto
from secure_quant.wire.gen import secure_inference_pb2 as he_pb2
from secure_quant.wire.gen import share_inference_pb2 as mpc_pb2
from secure_quant_client import HeClient, LeveledClient, MpcClient

Edge = tuple[str, str]
PACKAGE = "secure_quant_client."


class Answered:
    """A call that asks its server when its result is wanted."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self.result = ask

    def add_done_callback(self, _: Any) -> None:
        """It never fails, which is all that callbacks are for."""

    def cancel(self) -> bool:
        return False


class Streamed:
    """A call with a stream of one answer."""

    def __init__(self, call: Answered) -> None:
        self._call, self.cancel = call, call.cancel

    def __iter__(self) -> Iterator[Any]:
        yield self._call.result()

    def code(self) -> grpc.StatusCode:
        """It never fails."""
        return grpc.StatusCode.OK


class Method:
    """One method of a stub."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self._answer = answer

    def __call__(self, request: Any, **_: Any) -> Any:
        return self._answer(request)

    def future(self, request: Any, **_: Any) -> Answered:
        self._answer(request)
        return Answered(lambda: self._answer(request))


class Channel:
    """Of one server: ``answers`` by the method's name."""

    def __init__(self, answers: dict[str, Callable[[Any], Any]]) -> None:
        self._answers = answers

    def unary_unary(self, path: str, **_: Any) -> Method:
        return Method(self._answers.get(path.rpartition("/")[2], lambda _: None))

    stream_unary = stream_stream = unary_unary

    def unary_stream(self, path: str, **_: Any) -> Callable[..., Streamed]:
        """A unary method whose one answer comes as a stream."""
        method = self.unary_unary(path)
        return lambda request, **_: Streamed(method.future(request))

    def close(self) -> None:
        """Nothing is open."""


class Parties:
    """Both, who know each other's halves and so need no protocol."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._halves = graph, {}

    def channel(self, party: int) -> Channel:
        info = info_to_proto(self._graph.public(), b"{}")
        model = mpc_pb2.ShareInferenceServiceGetModelResponse(
            info=info, party=party, sharing=SHARING
        )
        return Channel({"GetModel": lambda _: model, "Infer": lambda r: self._infer(party, r)})

    def _infer(self, party: int, request: Any) -> Any:
        self._halves[party] = request
        if len(self._halves) < 2:
            return None
        share = np.frombuffer(self._halves[0].share, np.uint8)
        octets = share ^ Keystream(self._halves[1].seed).bytes(share.size)
        q = octets.view(np.int8).reshape(request.batch, *self._graph.input.shape)
        y = reference.run_int(self._graph, q).astype("<u8")
        return mpc_pb2.InferResponse(share=(y if party else y * 0).tobytes())


def he_channel(graph: Graph) -> Channel:
    """A server of the exact homomorphic engine."""
    bundles = he_bundle.split(graph)
    evaluator = he_bundle.load_server(bundles["server"])
    public, plan = he_bundle.load_client(bundles["client"])
    model = he_pb2.GetModelResponse(info=info_to_proto(public, plan.to_json()))

    def evaluate(request: Any) -> Any:
        answer = evaluator.evaluate(request.step, request.batch, request.ciphertexts)
        return he_pb2.EvaluateLinearResponse(ciphertexts=answer)

    return Channel({"GetModel": lambda _: model, "EvaluateLinear": evaluate})


def leveled_channel(model: Any) -> Channel:
    """A server whose answers all decrypt to zero, which is right for no input but plausible."""
    plan = plan_leveled(model)
    info = he_pb2.LeveledInfo(public_model=model.public().to_json(), plan=plan.to_json())

    def evaluate(request: Any) -> Any:
        samples = len(request.ciphertexts) // request_bytes(plan)
        return he_pb2.EvaluateModelResponse(ciphertexts=bytes(response_bytes(plan)) * samples)

    return Channel(
        {
            "GetModel": lambda _: he_pb2.GetModelResponse(leveled=info),
            "OpenSession": lambda pieces: he_pb2.OpenSessionResponse(
                session_id=bytes([len(list(pieces)) % 256] * 16)
            ),
            "EvaluateModel": evaluate,
        }
    )


def moves(work: Callable[[], Any]) -> Counter[Edge]:
    """Calls from room to room while ``work`` runs in this thread."""
    found: Counter[Edge] = Counter()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (room := _room(frame)) is not None:
            before = next(filter(None, map(_room, _below(frame))), "the caller")
            if before not in (room, "the caller"):
                found[before, room] += 1

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def _room(frame: FrameType) -> str | None:
    name = frame.f_globals.get("__name__", "")
    return name.removeprefix(PACKAGE) if name.startswith(PACKAGE) else None


def _below(frame: FrameType) -> Iterator[FrameType]:
    while (below := frame.f_back) is not None:
        yield below
        frame = below


def ways() -> Iterator[tuple[str, Counter[Edge]]]:
    """(engine, the moves of one inference)."""
    graph, shallow = lenet(), random_model((64, 32, 10), seed=1)
    parties, x = Parties(graph), inputs(graph, 1).astype(np.float32) / 32
    channels = {
        "party0": lambda: parties.channel(0), "party1": lambda: parties.channel(1),
        "he": lambda: he_channel(graph), "leveled": lambda: leveled_channel(shallow),
    }  # fmt: skip
    with mock.patch.object(grpc, "insecure_channel", lambda target, _: channels[target]()):
        options: Any = {"tls": InsecurePlaintext(), "expected_hash": graph.hash}
        mpc, he = MpcClient(["party0", "party1"], **options), HeClient("he", **options)
        leveled = LeveledClient("leveled", **options | {"expected_hash": shallow.hash})
    expected = reference.run(graph, x)
    exact: list[tuple[str, Any]] = [("secret sharing", mpc), ("homomorphic encryption", he)]
    for name, client in exact:
        with client:
            client.infer(x)
            if client is he:
                client.prepare()
            answers: list[Any] = []
            yield name, moves(lambda: answers.append(client.infer(x)))  # noqa: B023  now
            if not np.array_equal(answers[0], expected):
                raise SystemExit(f"{name}: a wrong answer")
    with leveled:
        leveled.infer(np.zeros((1, 64)))
        yield "leveled", moves(lambda: leveled.infer(np.zeros((1, 64))))


def main() -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--edges", action="store_true", help="which rooms, how often")
    options = parser.parse_args()
    for name, found in ways():
        print(f"{found.total():4d}  {name}")
        for (before, room), count in found.most_common() if options.edges else ():
            print(f"      {count:4d}  {before} -> {room}")


if __name__ == "__main__":
    main()
