"""What a party answers clients: the model, inferences on their shares, and how far these are."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from secure_quant import tracing
from secure_quant.errors import DeadlineExceeded, MalformedMessage, MessageTooLarge, ModelNotFound
from secure_quant.ir.effort import ROUND_TRIP_S, between_parties_s
from secure_quant.keystream import SEED_BYTES, Keystream
from secure_quant.mpc.protocol.party import PartyProgram
from secure_quant.mpc.runtime.jobs import Answer, Job
from secure_quant.transport import DEADLINE_S
from secure_quant.wire import SHARING, check_sharing, info_to_proto
from secure_quant.wire.gen.share_inference_pb2 import (
    InferRequest,
    InferResponse,
    InferStats,
    ShareInferenceServiceGetModelRequest,
    ShareInferenceServiceGetModelResponse,
)
from secure_quant.wire.gen.share_inference_pb2_grpc import ShareInferenceServiceServicer
from secure_quant.wire.gen.share_progress_pb2 import WatchRequest, WatchResponse
from secure_quant.wire.gen.share_progress_pb2_grpc import ShareProgressServiceServicer
from secure_quant_server.common import Held, current_caller
from secure_quant_server.mpc.watches import Watches

if TYPE_CHECKING:
    from secure_quant_server.mpc.party import Front

__all__ = ["PROGRESS", "SERVICE", "ShareInference", "ShareProgress"]

SERVICE = "secure_quant.v1.ShareInferenceService"
PROGRESS = "secure_quant.v1.ShareProgressService"
ID_BYTES = 16
EARLY_BYTES = 2**18
"""A share up to that size goes to party 1's lane before it is asked for; a larger one is not even
made from its seed until then."""
HELD_BYTES = 2**28
"""Of input shares that wait."""
SEEN_IDS = 200_000


class ShareProgress(ShareProgressServiceServicer):
    """Party 0's: how far an inference is, for whoever asked for it."""

    def __init__(self, watches: Watches) -> None:
        self._watches = watches

    async def Watch(  # noqa: N802
        self, request: WatchRequest, context: Any
    ) -> AsyncIterator[WatchResponse]:
        """See share_progress.proto."""
        if len(request.request_id) != ID_BYTES:
            got = f"{len(request.request_id)} bytes"
            raise MalformedMessage("request id", got=got, expected=f"{ID_BYTES} bytes")
        async with aclosing(self._watches.watch(request.request_id.hex())) as places:
            async for place in places:
                yield WatchResponse(**place._asdict())


class ShareInference(ShareInferenceServiceServicer):
    """Either party's: ``front`` has the models, lanes and budgets."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._held = Held(HELD_BYTES)

    async def GetModel(  # noqa: N802
        self, request: ShareInferenceServiceGetModelRequest, context: Any
    ) -> ShareInferenceServiceGetModelResponse:
        """See share_inference.proto."""
        program = self._program(request.model_hash)
        info = info_to_proto(program.graph, program.plan.to_json())
        return ShareInferenceServiceGetModelResponse(
            info=info, party=self._front.party, sharing=SHARING, batch=self._front.options.batch
        )

    async def Infer(self, request: InferRequest, context: Any) -> InferResponse:  # noqa: N802
        """See share_inference.proto."""
        program = self._program(request.model_hash)
        self._check(request, program)
        requests = self._front.requests
        tracing.note(
            model=program.model_hash, request=request.request_id.hex(), samples=request.batch
        )
        with requests.served("mpc", program.model_hash, request.batch) as cost:
            await self._front.budgets.pay(current_caller().name, program.model_hash, request.batch)
            self._remember(request.request_id)
            # Party 0 makes the share at once, if it was sent a seed; party 1 keeps what came.
            size = self._elements(request) if self._front.party == 0 else request.ByteSize()
            serving = self._front.watches.serving(
                request.request_id.hex(), program.model_hash, request.batch
            )
            with self._held.take(current_caller().name, size), serving:
                answer = await self._answer(request, *self._times(context, program, request.batch))
            cost.up, cost.down = len(request.share) + len(request.seed), len(answer.share)
            cost.online, cost.offline = answer.bytes_sent, answer.offline_bytes
            cost.rounds = answer.rounds
        tracing.past(
            "protocol", answer.microseconds / 1e6,
            rounds=answer.rounds, sent_bytes=answer.bytes_sent, offline_bytes=answer.offline_bytes,
        )  # fmt: skip
        return self._response(answer)

    async def _answer(self, request: InferRequest, wait_s: float, limit_s: float) -> Answer:
        """wait_s: longest wait for the other share. limit_s: for everything."""
        front = self._front
        job = Job(
            request.model_hash, (request.request_id.hex(),), (request.batch,),
            (current_caller().name,), wait_s, trace=tracing.header_of(),
        )  # fmt: skip
        try:
            async with asyncio.timeout(limit_s):
                if front.party == 1:
                    return await self._posted(job, request)
                return await front.batcher.infer(replace(job, share=self._share(request)))
        except asyncio.CancelledError:
            front.lanes.drop(job.ids[0])
            raise
        except TimeoutError as error:
            front.lanes.drop(job.ids[0])
            raise DeadlineExceeded("no answer in time", got=f"{limit_s:.1f} s waited") from error

    async def _posted(self, job: Job, request: InferRequest) -> Answer:
        """Party 1: put the share up until party 0's lane asks for it."""
        board, (key,) = self._front.board, job.ids
        lane = self._front.lanes.choose(key)  # refuses at once while none is ready
        early = self._elements(request) <= EARLY_BYTES
        try:
            answer = board.post(job, partial(self._share, request), request.ByteSize())
            if early:
                lane.push(replace(job, share=self._share(request)))
            done, _ = await asyncio.wait({answer}, timeout=job.wait_s)
            if not done and not board.claimed(key):
                raise DeadlineExceeded(
                    "the other party did not get the client's first share",
                    got=f"{job.wait_s:.1f} s waited",
                )
            return await answer
        finally:
            if early:  # the lane that it was pushed to need not be the one that served it
                lane.retract(key)
            board.remove(key)

    def _response(self, answer: Answer) -> InferResponse:
        stats = InferStats(
            rounds=answer.rounds,
            online_bytes_sent=answer.bytes_sent,
            offline_bytes=answer.offline_bytes,
            engine_microseconds=answer.microseconds,
        )
        return InferResponse(share=answer.share, stats=stats)

    def _program(self, model: str) -> PartyProgram:
        models = self._front.models
        if not model and len(models) == 1:
            return next(iter(models.values()))
        if model not in models:
            served = ", ".join(sorted(name[:12] for name in models))
            raise ModelNotFound("model", got=model[:64] or "none named", expected=served)
        return models[model]

    def _check(self, request: InferRequest, program: PartyProgram) -> None:
        check_sharing(request.sharing)
        if request.model_hash != program.model_hash:
            raise ModelNotFound("model", got="none named", expected="a hash")
        if len(request.request_id) != ID_BYTES:
            got = f"{len(request.request_id)} bytes"
            raise MalformedMessage("request id", got=got, expected=f"{ID_BYTES} bytes")
        if request.batch < 1:
            raise MalformedMessage("batch", got=request.batch, expected=">= 1")
        if request.batch > self._front.options.batch:
            limit = self._front.options.batch
            raise MessageTooLarge("batch", got=request.batch, expected=f"1 to {limit}")
        seeded = request.WhichOneof("input") == "seed"
        what, data = ("seed", request.seed) if seeded else ("share", request.share)
        expected = SEED_BYTES if seeded else self._elements(request)
        if len(data) != expected:
            raise MalformedMessage(what, got=f"{len(data)} bytes", expected=expected)

    def _elements(self, request: InferRequest) -> int:
        return request.batch * prod(self._program(request.model_hash).graph.input.shape)

    def _share(self, request: InferRequest) -> bytes:
        if request.WhichOneof("input") == "share":
            return request.share
        return Keystream(request.seed).bytes(self._elements(request)).tobytes()

    def _remember(self, request_id: bytes) -> None:
        """Each id once, as far back as memory reaches; material is never reused in any case."""
        if request_id in self._seen:
            raise MalformedMessage("request id", got="one used before", expected="a fresh one")
        self._seen[request_id] = None
        if len(self._seen) > SEEN_IDS:
            self._seen.popitem(last=False)

    def _times(self, context: Any, program: PartyProgram, samples: int) -> tuple[float, float]:
        """Longest waits for the other share and for the answer: of a caller who states no time, as
        long as a client of ours would give so many samples."""
        left, wait_s = context.time_remaining(), self._front.options.wait_s
        if left is None:
            each = between_parties_s(program.graph, program.plan.rounds, ROUND_TRIP_S)
            return wait_s, wait_s + max(DEADLINE_S, samples * each)
        return max(0.0, min(wait_s, left)), max(0.0, left)
