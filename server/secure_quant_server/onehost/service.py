"""OneHostService: hands out public models, and lets clients pair."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import grpc.aio
import prometheus_client as prometheus

from secure_quant.errors import (
    ConfigError,
    MalformedMessage,
    ModelNotFound,
    Overloaded,
    PeerUnavailable,
    UnsupportedVersion,
)
from secure_quant.onehost.bundle import load_server
from secure_quant.onehost.program import Host
from secure_quant.onehost.stream import PROTOCOL
from secure_quant.wire import info_to_proto
from secure_quant.wire.gen.one_host_pb2 import (
    OneHostServiceGetModelRequest,
    OneHostServiceGetModelResponse,
    PairOpen,
    PairRequest,
    PairResponse,
)
from secure_quant.wire.gen.one_host_pb2_grpc import OneHostServiceServicer
from secure_quant_server.common import Cost, Metrics, Requests, budgets_of, current_caller
from secure_quant_server.onehost.session import Bounds, Served, Session
from secure_quant_server.onehost.spent import Spent
from secure_quant_server.options import OneHostOptions

__all__ = ["SERVICE", "OneHost"]

SERVICE = "secure_quant.v1.OneHostService"
CHARGE_S = 10.0
"""Longest wait for the loop, which charges budgets."""
Context = grpc.aio.ServicerContext[Any, Any]


class OneHost(OneHostServiceServicer):
    """bundles: of the models. spent: samples of every client so far."""

    def __init__(
        self, bundles: Sequence[bytes], options: OneHostOptions, spent: Spent, metrics: Metrics
    ) -> None:
        """Raises MalformedModel and its kin, ConfigError for a model twice."""
        self._options, self._spent = options, spent
        self._budgets = budgets_of(options, "onehost", metrics)
        self._models: dict[str, Served] = {}
        for bundle in bundles:
            graph, plan = load_server(bundle)
            if graph.hash in self._models:
                raise ConfigError("bundles", got=f"model {graph.hash} twice", expected="once")
            self._models[graph.hash] = Served(graph.hash, plan, Host(graph, plan))
        cores = len(os.sched_getaffinity(0))
        at_once = cores if options.workers is None else options.workers
        self._turn = threading.BoundedSemaphore(at_once)
        self._sessions: set[Session] = set()
        self._of_client: Counter[str] = Counter()
        self._stopping = False
        self._runs = prometheus.Counter(
            "secure_quant_onehost_samples", "Samples of finished runs: pairings, items, inferences",
            ["run"], registry=metrics.registry,
        )  # fmt: skip
        self._requests = Requests(metrics)
        self._pairings = prometheus.Gauge(
            "secure_quant_onehost_pairings", "Pairings that are open", registry=metrics.registry
        )

    @property
    def hashes(self) -> list[str]:
        """Of the models served."""
        return list(self._models)

    @property
    def busy(self) -> bool:
        """An inference is under way."""
        return any(session.busy for session in self._sessions)

    def stop(self) -> None:
        """Take no more pairings; those without an inference under way end."""
        self._stopping = True
        for session in list(self._sessions):
            if not session.busy:
                session.end(_stopping())

    async def GetModel(  # noqa: N802  the name in the proto
        self, request: OneHostServiceGetModelRequest, context: Context
    ) -> OneHostServiceGetModelResponse:
        found = self._find(request.model_hash)
        info = info_to_proto(found.plan.graph, found.plan.to_json())
        return OneHostServiceGetModelResponse(info=info)

    async def Pair(  # noqa: N802
        self, request_iterator: AsyncIterator[PairRequest], context: Context
    ) -> AsyncIterator[PairResponse]:
        caller, frames = current_caller().name, aiter(request_iterator)
        first = await anext(frames, PairRequest())
        if first.WhichOneof("message") != "open":
            got = first.WhichOneof("message") or "none"
            raise MalformedMessage("first frame of a pairing", got=got, expected="open")
        session = await self._open(first.open, caller)
        try:
            async for answer in session.answers(frames):
                yield answer
        finally:
            session.end(PeerUnavailable("the pairing", got="a stream that ended"))
            self._sessions.discard(session)
            self._pairings.set(len(self._sessions))
            self._of_client[caller] -= 1
            if not self._of_client[caller]:
                del self._of_client[caller]

    async def _open(self, asked: PairOpen, caller: str) -> Session:
        """Raises ModelNotFound, UnsupportedVersion, Overloaded, BudgetExceeded, PeerUnavailable."""
        if self._stopping:
            raise _stopping()
        if asked.protocol != PROTOCOL:
            raise UnsupportedVersion("protocol", got=asked.protocol, expected=PROTOCOL)
        if asked.model_hash not in self._models:
            raise self._unknown(asked.model_hash)
        served, options = self._models[asked.model_hash], self._options
        self._check_room(caller)  # before it pays, and after, for others came meanwhile
        await self._budgets.pay(caller, (served.hash, "pairing"), 1)
        self._check_room(caller)
        charge = partial(self._charge, asyncio.get_running_loop(), caller, served)
        session = Session(served, Bounds(
            samples=options.stock, step_s=options.step_s, idle_s=options.idle_s,
            turn=lambda: self._turn, charge=charge,
            noted=lambda run, samples: self._runs.labels(run).inc(samples),
            answered=lambda samples, seconds: self._answered(served, samples, seconds),
        ))  # fmt: skip
        self._sessions.add(session)
        self._of_client[caller] += 1
        self._pairings.set(len(self._sessions))
        return session

    def _check_room(self, caller: str) -> None:
        """Raises Overloaded."""
        options = self._options
        for what, now, most in (
            ("pairings of one client", self._of_client[caller], options.pairings_per_client),
            ("pairings", len(self._sessions), options.pairings),
        ):
            if now >= most:
                raise Overloaded(f"{what} at once", expected=f"<= {most}")

    async def close(self) -> None:
        """What it holds outside this process."""
        await self._budgets.close()

    def _answered(self, served: Served, samples: int, seconds: float) -> None:
        """In any thread. Each flight is an exchange with the client."""
        plan, cost = served.plan.cost(samples), Cost()
        cost.up, cost.down, cost.rounds = plan.online_up, plan.online_down, plan.flights
        self._requests.answered("onehost", served.hash, samples, seconds, cost)

    def _charge(
        self, loop: asyncio.AbstractEventLoop, caller: str, served: Served, samples: int
    ) -> None:
        """For an item: whoever makes one may ask with it. In any thread but the loop's. Raises
        BudgetExceeded, PeerUnavailable."""
        paying = self._budgets.pay(caller, (served.hash, "item"), samples)
        asyncio.run_coroutine_threadsafe(paying, loop).result(CHARGE_S)
        self._spent.charge(caller, served.hash, samples, served.plan.calls)

    def _find(self, model_hash: str) -> Served:
        wanted = model_hash or (self.hashes[0] if len(self._models) == 1 else "")
        if wanted not in self._models:
            raise self._unknown(model_hash)
        return self._models[wanted]

    def _unknown(self, model_hash: str) -> ModelNotFound:
        got = ascii(model_hash[:64]) if model_hash else "no hash"
        return ModelNotFound("model", got=got, expected=f"one of {', '.join(self.hashes)}")


def _stopping() -> PeerUnavailable:
    return PeerUnavailable("the host stops", hint="pair anew with another, or later")
