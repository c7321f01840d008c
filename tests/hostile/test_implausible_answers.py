"""Answers of the right form that no model gives: named, and only after the last request, so that
when a client stops tells nothing of what it decrypted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from e2e.he_server import inputs, lenet

from secure_quant import reference
from secure_quant.errors import ImplausibleAnswer
from secure_quant.he.plan import plan
from secure_quant.transport import InsecurePlaintext
from secure_quant.wire import info_to_proto
from secure_quant.wire.gen.share_inference_pb2 import InferResponse
from secure_quant_client import MpcClient
from secure_quant_client.he.ckks import CkksKeys
from secure_quant_client.he.model import HeModel
from secure_quant_client.mpc.model import MpcModel

NET = lenet()


def he_model(limit: int = 2**26) -> HeModel:
    info = info_to_proto(NET.public(), plan(NET).to_json())
    return HeModel.receive(info, NET.hash, message_bytes=limit, stock=0)


@pytest.mark.parametrize("where", ["conv1", "linear2", "output"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_value_out_of_its_range_is_named_once_all_parts_are_there(where: str, sign: int) -> None:
    model, q = he_model(), inputs(NET, 3)
    parts = [reference.trace(NET, q[i : i + 1]) for i in range(3)]
    whole = model.joined(parts)
    assert np.array_equal(whole[NET.output.name], reference.run_int(NET, q))
    name = NET.output.name if where == "output" else _linear(where)
    allowed = NET.public().values[name].range
    changed = parts[1][name].copy()
    changed.flat[3] = allowed.hi + 1 if sign > 0 else allowed.lo - 1
    parts[1] = parts[1] | {name: changed}
    with pytest.raises(ImplausibleAnswer, match="one out of range, expected -") as error:
        model.joined(parts)
    assert name in str(error.value)


def _linear(where: str) -> str:
    steps = [step.node for step in plan(NET).steps]
    return steps[0] if where == "conv1" else steps[-1]


def test_under_he_noise_is_an_answer_like_any_other() -> None:
    """The unit of an accumulator fills the ring, so whatever comes decrypts to what could be: the
    exact HE mode cannot see that its server deviates, and SECURITY.md says so."""
    made, rng = plan(NET), np.random.default_rng(4)
    for step, planned in enumerate(made.steps):
        call, keys = planned.call(1), CkksKeys(NET.public(), made)
        shape = (call.ciphertexts_down, call.ring.degree)
        c1 = rng.integers(0, call.ring.prime, shape, dtype=np.uint64)
        c0 = rng.integers(0, call.ring.prime, call.packing.outputs, dtype=np.uint64)
        y = keys.decrypt(step, 1, call.response_c1(c1) + call.response_c0(c0))
        assert np.abs(y).max() <= NET.public().values[planned.node].range.hi


def honest(y: np.ndarray) -> list[InferResponse]:
    shares = np.random.default_rng(0).integers(0, 2**64, y.shape, np.uint64)
    halves = (shares, y.astype(np.uint64) - shares)
    return [InferResponse(share=half.astype("<u8").tobytes()) for half in halves]


def with_added(amount: int) -> Callable[[np.ndarray], list[InferResponse]]:
    """One party's share with something added to its first element."""

    def answers(y: np.ndarray) -> list[InferResponse]:
        first, second = honest(y)
        words = np.frombuffer(second.share, "<u8").copy()
        words[0] += np.uint64(amount)
        return [first, InferResponse(share=words.tobytes())]

    return answers


def noise(y: np.ndarray) -> list[InferResponse]:
    return [InferResponse(share=np.random.default_rng(i).bytes(8 * y.size)) for i in range(2)]


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("deviating", [with_added(2**20), with_added(2**63), noise])
def test_a_party_that_adds_to_its_share_is_noticed_after_the_last_part(
    parts: int, deviating: Callable[[np.ndarray], list[InferResponse]]
) -> None:
    model = MpcModel(NET.public(), 1)
    q, sent = inputs(NET, parts), []
    y = reference.run_int(NET, q)

    class Client(MpcClient):
        answers = staticmethod(honest)

        def _connect(self, deadline: Any) -> MpcModel:
            return model

        def _start(self, calls: Any, deadline: Any) -> int:
            sent.append(calls)
            return len(sent) - 1

        def _finish(self, part: int) -> list[InferResponse]:  # type: ignore[override]
            return (self.answers if part == 0 else honest)(y[part : part + 1])[::-1]

        def _ask(self, calls: Any, deadline: Any) -> list[InferResponse]:
            return self._finish(self._start(calls, deadline))

    with Client(["127.0.0.1:1", "127.0.0.1:2"], tls=InsecurePlaintext()) as client:
        assert np.array_equal(client.infer_int8(q), y)
        sent.clear()
        client.answers = deviating
        with pytest.raises(ImplausibleAnswer, match="one out of range"):
            client.infer_int8(q)
        assert len(sent) == parts
