"""Who watches an inference of theirs, and what they are told: at most what a lane said last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secure_quant.errors import Overloaded
from secure_quant.ir.course import Course, Place, Step
from secure_quant.mpc.runtime.jobs import Ids
from secure_quant_server.common import current_caller

if TYPE_CHECKING:
    from secure_quant.mpc.protocol.party import PartyProgram

__all__ = ["Watches"]


@dataclass(eq=False)
class _Watch:
    caller: str
    place: Place | None = None
    over: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Watches:
    """Of a front. lanes: told of a request, by its id in hexadecimal, that somebody watches or
    watches no longer."""

    def __init__(
        self, programs: Mapping[str, PartyProgram], lanes: Callable[[str, bool], None], most: int
    ) -> None:
        """``most``: at once."""
        self._programs, self._lanes, self._most = programs, lanes, most
        self._serving: dict[str, tuple[str, str, int]] = {}  # caller, model, samples
        self._watches: dict[str, _Watch] = {}
        self._courses: dict[str, Course] = {}

    @contextmanager
    def serving(self, key: str, model: str, samples: int) -> Iterator[None]:
        """Around a request that computes."""
        self._serving[key] = current_caller().name, model, samples
        try:
            yield
        finally:
            del self._serving[key]
            if (watch := self._watches.get(key)) is not None:
                watch.over = True
                watch.changed.set()

    async def watch(self, key: str) -> AsyncGenerator[Place, None]:
        """Until the request is over, or its caller looks no more. Raises Overloaded."""
        if len(self._watches) >= self._most or key in self._watches:
            raise Overloaded("calls that watch", got=len(self._watches))
        watch = self._watches[key] = _Watch(current_caller().name)
        self._lanes(key, True)
        try:
            while not watch.over:
                await watch.changed.wait()
                watch.changed.clear()
                if watch.place is not None and not watch.over:
                    yield watch.place
        finally:
            del self._watches[key]
            self._lanes(key, False)

    def stepped(self, ids: Ids, rounds: int) -> None:
        """A lane has done so many rounds of a job."""
        known = {key: self._serving[key] for key in ids if key in self._serving}
        if not known:
            return
        model = next(iter(known.values()))[1]
        place = self._place(model, rounds, sum(count for _, _, count in known.values()))
        for key, (caller, _, _) in known.items():
            watch = self._watches.get(key)
            if watch is not None and watch.caller == caller:
                watch.place = place
                watch.changed.set()

    def _place(self, model: str, rounds: int, samples: int) -> Place:
        plan = self._programs[model].plan
        if model not in self._courses:
            steps = (Step(gate.name, gate.inputs, len(gate.payloads)) for gate in plan.gates)
            self._courses[model] = Course(plan.graph, steps, plan.rounds)
        return self._courses[model].at(rounds, samples if plan.streamed else 1)
