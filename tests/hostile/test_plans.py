"""Plans that are sound and yet not what the planner would choose: a server that has its clients
work, or hold memory, for nothing. The plan is outside the hash, so the client makes its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from patience import ample
from unit.he.leveled.models import random_model
from unit.he.models import lenet
from unit.server.support import StandIn, serving, tls

from secure_quant.errors import DeadlineExceeded, MessageTooLarge, PlanMismatch
from secure_quant.he.geometry import Geometry
from secure_quant.he.leveled import plan as plan_leveled
from secure_quant.he.noise import choose
from secure_quant.he.packing import Packing, Tile
from secure_quant.he.parameters import TIERS
from secure_quant.he.plan import HePlan, Layout, plan
from secure_quant.he.search import layer_of
from secure_quant.wire import info_to_proto
from secure_quant.wire.gen.secure_inference_pb2 import GetModelResponse, LeveledInfo
from secure_quant_client import AsyncHeClient, HeClient, trust
from secure_quant_client.driver import Deadline
from secure_quant_client.he.model import HeModel
from secure_quant_client.leveled.model import RemoteLeveled

NET = lenet().public()
OWN = plan(NET)


def wasteful() -> HePlan:
    """Every layer cut into windows of one channel: sound, and large."""
    steps = []
    for step in OWN.steps:
        layouts = tuple(_wasteful(step.geometry, each.batch) for each in step.layouts)
        steps.append(replace(step, layouts=layouts))
    return replace(OWN, steps=tuple(steps))


def _wasteful(geometry: Geometry, batch: int) -> Layout:
    ring, tile = TIERS["T1"][2], Tile(1, 1, 1, 1, geometry.kh, geometry.kw)
    packing = Packing(geometry, tile, ring.degree, batch)
    sent = (packing.cells * packing.n_in, 1, packing.cells * packing.n_out, packing.outputs)
    scaling = choose(layer_of(geometry, tile), ring, "T1", sent)
    assert scaling is not None
    return Layout(batch, ring, tile, scaling)


def one_scaling_bit_off() -> HePlan:
    first, *rest = OWN.steps
    layout = first.layouts[0]
    changed = replace(layout, scaling=replace(layout.scaling, drop_c0=layout.scaling.drop_c0 - 1))
    return replace(OWN, steps=(replace(first, layouts=(changed, *first.layouts[1:])), *rest))


def another_start_of_a_class() -> HePlan:
    """The layout of single samples for every batch."""
    steps = tuple(replace(step, layouts=step.layouts[:1]) for step in OWN.steps)
    return replace(OWN, steps=steps)


def received(made: HePlan, expected_hash: str | None = NET.hash) -> HeModel:
    info = info_to_proto(NET, made.to_json())
    return HeModel.receive(info, expected_hash, message_bytes=2**26, stock=0)


def test_the_planners_own_is_taken_for_any_batch() -> None:
    model = received(OWN)
    for batch in (1, 2, 3, 7, 8, 63, 64, 65, 256):
        model.check(batch, Deadline(60))


@pytest.mark.parametrize(
    ("forged", "batch"), [(wasteful, 1), (one_scaling_bit_off, 1), (another_start_of_a_class, 64)]
)
def test_a_sound_plan_that_is_not_the_planners_is_refused(
    forged: Callable[[], HePlan], batch: int
) -> None:
    model = received(forged())  # sound by all that a plan alone can be checked for
    with pytest.raises(PlanMismatch, match="this release"):
        model.check(batch, Deadline(60))


def test_planning_ends_with_the_deadline() -> None:
    """A graph of thousands of layers of different shapes is planned for minutes."""
    steps: list[None] = []

    def one_more() -> None:
        steps.append(None)
        if len(steps) > 2:
            raise DeadlineExceeded("inference")

    with pytest.raises(DeadlineExceeded):
        OWN.require_own(1, one_more)
    assert len(steps) == 3 < len(OWN.steps)
    deadline = Deadline(1e-6)
    with pytest.raises(DeadlineExceeded):
        received(OWN).check(1, deadline)


def test_what_was_accepted_before_was_large() -> None:
    assert wasteful().cost().bytes_down > 100_000_000 > 500 * OWN.cost().bytes_down


class Lying(StandIn):
    """Serves the LeNet with another plan, and counts what is sent to it."""

    def __init__(self, made: HePlan) -> None:
        super().__init__(self._count)
        self.made, self.asked = made, 0

    async def start(self) -> list[bytes]:
        return [info_to_proto(NET, self.made.to_json()).SerializeToString()]

    async def _count(self, _: bytes) -> bytes:
        self.asked += 1
        return b""


def test_clients_send_nothing_under_such_a_plan() -> None:
    q = np.zeros((1, *NET.input.shape), np.int8)

    def use(target: str) -> None:
        with HeClient(target, tls=tls("client"), expected_hash=NET.hash) as client:
            for work in (lambda: client.infer_int8(q), client.prepare):
                with pytest.raises(PlanMismatch):
                    work()
            assert not client._model.stock._ready  # and no key waits for another try

    async def use_async(target: str) -> None:
        options = {"tls": tls("client"), "expected_hash": NET.hash}
        async with AsyncHeClient(target, **options) as client:
            with pytest.raises(PlanMismatch):
                await client.infer_int8(q)
            with pytest.raises(PlanMismatch):
                await client.prepare()

    async def test() -> None:
        server = Lying(wasteful())
        async with serving(evaluators=server) as running:
            target = f"127.0.0.1:{running.port}"
            await asyncio.to_thread(use, target)
            await use_async(target)
        assert not server.asked

    asyncio.run(asyncio.wait_for(test(), ample(60)))
    assert "session-stock" not in {thread.name for thread in threading.enumerate()}


def test_a_model_nobody_asked_for_by_hash_may_not_be_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cost = OWN.cost()
    monkeypatch.setattr(trust, "UNPINNED_BYTES", cost.bytes_up + cost.bytes_down)
    with pytest.raises(MessageTooLarge, match="expected_hash"):
        received(OWN, expected_hash=None)
    assert received(OWN).plan.cost() == cost


SMALL = random_model((12, 4), seed=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"degree": 16384},  # six times the keys
        {"chain_bits": (34, 30, 30), "scale_bits": 30},  # a larger error to hide in
    ],
)
def test_a_leveled_plan_that_is_not_the_planners_is_refused(changes: dict[str, Any]) -> None:
    own = plan_leveled(SMALL)
    own.require_own()
    forged = replace(own, **changes)
    info = LeveledInfo(public_model=SMALL.public().to_json(), plan=forged.to_json())
    options = {"message_bytes": 2**26, "answers_per_key": 64, "tolerance": 1e-3}
    with pytest.raises(PlanMismatch, match="modulus chain"):
        RemoteLeveled.receive(GetModelResponse(leveled=info), SMALL.hash, **options)


@pytest.mark.parametrize("widths", [(6, 5, 3), (12, 4), (64, 32, 10), (4, 3, 3, 2), (1, 1)])
@pytest.mark.parametrize("bound", [0.1, 1.0, 30.0])
def test_the_planners_own_leveled_plan_is_taken(widths: tuple[int, ...], bound: float) -> None:
    plan_leveled(random_model(widths, bound=bound), tolerance=1.0).require_own()
