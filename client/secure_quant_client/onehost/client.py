"""Inference with one host that never sees an input: no dealer, and no weights are shown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from secure_quant.errors import ConfigError, InsecureRefused
from secure_quant.transport import DEADLINE_S, sync_channel
from secure_quant.wire.gen.one_host_pb2 import (
    OneHostServiceGetModelRequest,
    OneHostServiceGetModelResponse,
)
from secure_quant.wire.gen.one_host_pb2_grpc import OneHostServiceStub
from secure_quant_client.connection import (
    Connection,
    OneServer,
    Service,
)
from secure_quant_client.exact import AsyncIntegerClient, IntegerClient

if TYPE_CHECKING:  # numba and TenSEAL come with the first call, not with the name
    from secure_quant.onehost.plan import OneHostPlan
    from secure_quant_client.onehost.model import OneHostModel
    from secure_quant_client.onehost.pairing import Paired

__all__ = ["AsyncOneHostClient", "OneHostClient"]

STOCK = 2
"""Samples for which a client has items made ahead."""


class _OneHost(OneServer["OneHostModel"]):
    """What both faces share."""

    _service = Service(("onehost",), OneHostServiceStub, OneHostServiceGetModelRequest)

    def __init__(
        self, target: str, *, stock: int = STOCK, allow_lpn: bool = True,
        **connection: Unpack[Connection],
    ) -> None:  # fmt: skip
        if stock < 0:
            raise ConfigError("stock", got=stock, expected=">= 0")
        super().__init__(target, **connection)
        self._target, self._tls, self._stock = target, connection["tls"], stock
        self._allow_lpn = allow_lpn

    def _receive(self, answers: Sequence[OneHostServiceGetModelResponse]) -> OneHostModel:
        from secure_quant_client.onehost.model import OneHostModel

        model = OneHostModel.receive(answers[0].info, self._expected_hash, self._pair)
        if model.plan.lpn is not None and not self._allow_lpn:
            raise InsecureRefused(
                "plan of the model", got="one that rests on LPN (objective traffic)",
                hint="split the model with the objective latency, or set allow_lpn=True",
            )  # fmt: skip
        return model

    def _pair(self, plan: OneHostPlan) -> Paired:
        """On a channel of its own: a pairing is as good as its connection."""
        from secure_quant_client.onehost.model import patience
        from secure_quant_client.onehost.pairing import Paired

        channel = sync_channel(self._target, self._tls, server_role="onehost", limits=self._limits)
        step_s = self._limits.deadline_s or max(DEADLINE_S, patience(plan.graph))
        return Paired(channel, self._metadata, plan, stock=self._stock, step_s=step_s)


class OneHostClient(_OneHost, IntegerClient["OneHostModel"]):
    """A pairing with the one server; for threads, which take turns. See AsyncOneHostClient.

    target, tls, expected_hash, token, limits: as HeClient.
    stock   samples for which items of one-time material are made ahead in the background, of the
            batch size used last; 0 makes each when it is asked for. The host may allow fewer.
    allow_lpn
            False refuses, by InsecureRefused and before it pairs, a model that was split for the
            objective traffic, with which what either end hides rests on LPN too (SECURITY.md).

    The first inference pairs (some tens of milliseconds at either end) and makes an item; later
    ones take one from the stock. The host learns nothing of inputs, activations or outputs, this
    client nothing but the output; both hold if both keep to the protocol (SECURITY.md).
    A failed inference is not repeated; it ends the pairing, and the next one pairs anew.
    """

    def close(self) -> None:
        """Give up the connection, the pairing and every item."""
        super().close()
        if self._model is not None:
            self._model.close()

    def prepare(self, batch: int = 1, *, timeout: float | None = None) -> None:
        """Pair, and make the stock for ``batch`` full now rather than in the background."""
        deadline = self._deadline(timeout)
        self._connect(deadline).prepare(batch, deadline)


class AsyncOneHostClient(_OneHost, AsyncIntegerClient["OneHostModel"]):
    """OneHostClient for asyncio: the same arguments, the same answers, the same errors. Make it
    inside the event loop that uses it; inferences run in threads, so that the loop stays free. One
    that is cancelled while it runs ends its pairing, and so the host's half, within 0.25 s."""

    _heavy = True

    async def close(self) -> None:
        """Give up the connection, the pairing and every item."""
        await super().close()
        if self._model is not None:
            await asyncio.to_thread(self._model.close)

    async def prepare(self, batch: int = 1, *, timeout: float | None = None) -> None:
        """Pair, and make the stock for ``batch`` full now rather than in the background."""
        deadline = self._deadline(timeout)
        async with deadline.bounding():
            model = await self._connect(deadline)
            await asyncio.to_thread(model.prepare, batch, deadline)
