"""Inference on secret-shared inputs at two parties that do not collude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from secure_quant.errors import ConfigError
from secure_quant.wire.gen.share_inference_pb2 import (
    ShareInferenceServiceGetModelRequest,
    ShareInferenceServiceGetModelResponse,
)
from secure_quant.wire.gen.share_inference_pb2_grpc import ShareInferenceServiceStub
from secure_quant.wire.gen.share_progress_pb2_grpc import ShareProgressServiceStub
from secure_quant_client.cells import check_cells
from secure_quant_client.connection import (
    Client,
    Connection,
    Service,
)
from secure_quant_client.exact import AsyncIntegerClient, IntegerClient
from secure_quant_client.mpc.cells import AsyncCells, SyncCells
from secure_quant_client.mpc.model import MpcModel

__all__ = ["AsyncMpcClient", "MpcClient"]


def _stub(channel: Any) -> Any:
    """Inference, and beside it the one method by which it is watched."""
    made: Any = ShareInferenceServiceStub(channel)
    made.Watch = ShareProgressServiceStub(channel).Watch
    return made


MPC = Service(("party0", "party1"), _stub, ShareInferenceServiceGetModelRequest)


class _Sharing(Client[MpcModel]):
    """What both faces share."""

    _service = MPC

    def __init__(
        self,
        targets: Sequence[str] | None = None,
        *,
        cells: Sequence[Sequence[str]] | None = None,
        **connection: Unpack[Connection],
    ) -> None:
        if (targets is None) == (cells is None):
            got = "neither" if cells is None else "both"
            raise ConfigError("targets, cells", got=got, expected="one of them")
        found = check_cells(cells, MPC.roles) if cells is not None else [targets or ()]
        super().__init__(found[0], **connection)
        # Of the first cell this is the client itself.
        self._others: list[Any] = [type(self)(each, **connection) for each in found[1:]]

    def _all(self) -> list[Any]:
        return [self, *self._others]

    def _receive(self, answers: Sequence[ShareInferenceServiceGetModelResponse]) -> MpcModel:
        limits = self._limits
        return MpcModel.receive(
            answers, self._expected_hash,
            message_bytes=limits.message_bytes, round_trip_s=limits.round_trip_s,
        )  # fmt: skip


class MpcClient(_Sharing, IntegerClient[MpcModel]):
    """A connection to the two parties; for threads. See AsyncMpcClient.

    targets        ``host:port`` of party 0 and of party 1.
    cells          several such pairs in place of ``targets``, each with a dealer of its own, which
                   serve the same model: an inference goes to the least loaded that is there, and
                   to another one as long as nothing of it has begun. Whoever runs party 0 of one
                   cell must not run party 1 of another that has the same bundles.
    tls            Tls(ca=..., cert=..., key=...); InsecurePlaintext() in so many words.
    expected_hash  the model to ask for, and the only one accepted. Without it the parties choose,
                   and they must serve a single model, the same one.
    token          where the parties ask for one besides the certificate.
    limits         Limits(...): largest message, default deadline, slowest round of the parties.

    Neither party sees inputs, activations, outputs or weights unless the two collude with each
    other or with the dealer.
    Every method may raise ServiceError's leaves (PeerUnavailable, DeadlineExceeded, ...) and
    ProtocolError's; a failed inference is not repeated, and may be by the caller.
    """

    def __init__(
        self,
        targets: Sequence[str] | None = None,
        *,
        cells: Sequence[Sequence[str]] | None = None,
        **connection: Unpack[Connection],
    ) -> None:
        super().__init__(targets, cells=cells, **connection)
        self._cells = SyncCells(self._all()) if self._others else None

    def close(self) -> None:
        """Give up the connections."""
        for each in self._others:
            each.close()
        super().close()

    def check_ready(self, *, timeout: float | None = None) -> None:
        """As of any client; of several cells one that serves is enough."""
        if self._cells is None:
            return super().check_ready(timeout=timeout)
        return self._cells.check(self._deadline(timeout))


class AsyncMpcClient(_Sharing, AsyncIntegerClient[MpcModel]):
    """See MpcClient. Make it inside the event loop that uses it."""

    def __init__(
        self,
        targets: Sequence[str] | None = None,
        *,
        cells: Sequence[Sequence[str]] | None = None,
        **connection: Unpack[Connection],
    ) -> None:
        super().__init__(targets, cells=cells, **connection)
        self._cells = AsyncCells(self._all()) if self._others else None

    async def close(self) -> None:
        """Give up the connections."""
        if self._cells is not None:
            await self._cells.stop()
        for each in self._others:
            await each.close()
        await super().close()

    async def check_ready(self, *, timeout: float | None = None) -> None:
        """As of any client; of several cells one that serves is enough."""
        if self._cells is None:
            return await super().check_ready(timeout=timeout)
        deadline = self._deadline(timeout)
        async with deadline.bounding():
            return await self._cells.check(deadline)
