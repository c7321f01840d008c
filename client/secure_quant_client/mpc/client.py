"""Inference on secret-shared inputs at two parties that do not collude."""

from __future__ import annotations

from collections.abc import Sequence

from secure_quant.wire.gen.share_inference_pb2 import (
    ShareInferenceServiceGetModelRequest,
    ShareInferenceServiceGetModelResponse,
)
from secure_quant.wire.gen.share_inference_pb2_grpc import ShareInferenceServiceStub
from secure_quant_client.connection import AsyncIntegerClient, Client, IntegerClient, Service
from secure_quant_client.mpc.model import MpcModel

__all__ = ["AsyncMpcClient", "MpcClient"]

MPC = Service(("party0", "party1"), ShareInferenceServiceStub, ShareInferenceServiceGetModelRequest)


class _Sharing(Client[MpcModel]):
    """What both faces share."""

    _service = MPC

    def _receive(self, answers: Sequence[ShareInferenceServiceGetModelResponse]) -> MpcModel:
        limit = self._limits.message_bytes
        return MpcModel.receive(answers, self._expected_hash, message_bytes=limit)


class MpcClient(_Sharing, IntegerClient[MpcModel]):
    """A connection to the two parties; for threads. See AsyncMpcClient.

    targets        ``host:port`` of party 0 and of party 1.
    tls            Tls(ca=..., cert=..., key=...); InsecurePlaintext() in so many words.
    expected_hash  the model to ask for, and the only one accepted. Without it the parties choose,
                   and they must serve a single model, the same one.
    token          where the parties ask for one besides the certificate.
    limits         largest message, default deadline.

    Neither party sees inputs, activations, outputs or weights unless the two collude with each
    other or with the dealer.
    Every method may raise ServiceError's leaves (PeerUnavailable, DeadlineExceeded, ...) and
    ProtocolError's; a failed inference is not repeated, and may be by the caller.
    """


class AsyncMpcClient(_Sharing, AsyncIntegerClient[MpcModel]):
    """See MpcClient. Make it inside the event loop that uses it."""
