"""The link between the two parties of one lane: framed rounds over one bidirectional stream.

A protocol that runs over it is a generator: it yields this party's payload of a round and is sent
the peer's payload of the same round. Both payloads of a round have the same length, so a receiver
knows how much to expect before it takes memory for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from secure_quant.errors import MalformedMessage, PeerUnavailable, SecureQuantError
from secure_quant.mpc.protocol.rounds import Rounds, Want
from secure_quant.mpc.runtime.carriers import Carrier, Frame
from secure_quant.mpc.runtime.jobs import Ids, Job
from secure_quant.mpc.runtime.stops import Stop, Stopped, gone
from secure_quant.wire import from_abort, to_abort
from secure_quant.wire.gen.party_link_pb2 import LinkBegin, LinkHello, LinkStage

__all__ = ["CHUNK", "PROTOCOL", "Meter", "PartyLink"]

PROTOCOL = 3
"""3: clients share the input's bytes by XOR, and the parties lift them."""
CHUNK = 2**20
"""Longest payload in one message; the largest that does not need raised gRPC limits is 4 MiB."""

MAX_UNREAD = 2**28
"""Bytes of payload that may wait to be read: two rounds of the largest inference allowed."""

LOOK_S = 1e-3
"""Longest wait for the peer's payload in which this process does nothing else: a peer near by takes
less than to sleep and be woken through the loop costs."""
MISSES = 63
"""Most payloads in a row that are not looked for, where the peer has been too slow before."""
LOOK_BYTES = 2**16
"""Longest payload that is looked for: of a longer one more has to be written meanwhile."""
TURN_S = 5e-3
"""The loop's other work has its turn at least so often."""

LONGEST_S = 3600.0
"""Longest wait for shares that an offer may ask for."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Meter:
    """What one run over the link cost: exchanges, payload bytes sent (received are as many),
    seconds from its first to its last step."""

    rounds: int
    bytes_sent: int
    seconds: float

    def __add__(self, other: Meter) -> Meter:
        return Meter(
            self.rounds + other.rounds,
            self.bytes_sent + other.bytes_sent,
            self.seconds + other.seconds,
        )


class PartyLink:
    """One open stream. ``pump`` must run for as long as it is used: it reads every frame, so a
    peer's send never waits for ours, and two simultaneous large sends cannot block each other."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier, self._kind = carrier, carrier.kind
        self._inbox: deque[bytes | None] = deque()  # None: the other side gave up here
        self._unread = 0
        self._misses = self._unlooked = 0  # payloads not to look for: in all, and still
        self.rounds = 0
        """Exchanges begun since the link was made."""
        self._waiter: asyncio.Future[None] | None = None
        self._lost: BaseException | None = None
        self.on_begin: Callable[[Job, int], None] | None = None  # and its first item
        self.on_decline: Callable[[Ids, SecureQuantError], None] | None = None
        self.on_stage: Callable[[LinkStage], None] | None = None

    async def greet(self, hello: LinkHello) -> None:
        """Send the first frame."""
        await self._send(self._kind(hello=hello))

    async def greeted(self) -> LinkHello:
        """The peer's first frame. Raises MalformedMessage, PeerUnavailable."""
        frame = await self._carrier.read()
        if frame.WhichOneof("frame") == "abort":  # what this side offered was turned down
            raise from_abort(frame.abort)
        if frame.WhichOneof("frame") != "hello":
            raise MalformedMessage("first frame of a link", got=_name(frame), expected="hello")
        return frame.hello

    async def begin(self, job: Job, first_item: int = 0) -> None:
        """Offer (party 0) or accept (party 1) an inference."""
        await self._send(self._kind(begin=_to_begin(job, first_item)))

    async def stage(self, model_hash: str, first_item: int, items: int) -> None:
        """Party 1: set material aside for one inference to come."""
        message = LinkStage(model_hash=model_hash, first_item=first_item, items=items)
        await self._send(self._kind(stage=message))

    async def decline(self, error: SecureQuantError, ids: Ids = ()) -> None:
        """Turn one offer down, or the link itself where ``ids`` is empty."""
        await self._send(self._kind(abort=to_abort(error, tuple(map(bytes.fromhex, ids)))))

    async def exchange(self, payload: bytes) -> bytes:
        """Send a payload and return the peer's of the same round, of the same length.

        Raises MalformedMessage if the peer's is longer, PeerUnavailable once the link is lost.
        """
        # The peer sends without waiting for us, so we read while ours is still being sent.
        self._write(payload)
        received = await self.receive(len(payload))
        await self._carrier.drain()
        return received

    async def send(self, payload: bytes) -> None:
        """Send a payload, in chunks if it is long. Raises PeerUnavailable."""
        self._write(payload)
        await self._carrier.drain()

    async def receive(self, size: int) -> bytes:
        """The peer's next payload, ``size`` bytes. Raises MalformedMessage, PeerUnavailable."""
        first = await self._payload(look=size <= LOOK_BYTES)
        if len(first) == size:
            return first
        parts, got = [first], len(first)
        while got < size:
            parts.append(await self._payload())
            got += len(parts[-1])
        if got != size:
            raise MalformedMessage("payload of a round", got=f"{got} bytes", expected=size)
        return b"".join(parts)

    async def drive(self, run: Rounds[Result], stop: Stop | None = None) -> tuple[Result, Meter]:
        """Run a protocol to its end. Raises what it raises, what ``exchange`` raises, and Stopped
        where ``stop``, or the other side, wants no more of it."""
        start = turn = time.perf_counter()
        rounds = sent = 0
        try:
            payload = next(run)
            while True:
                if isinstance(payload, Want):
                    payload = run.send(await payload.get())
                    continue
                if stop is not None and (stop.here or stop.said):
                    await self._say(stop)
                    await self._drain()
                rounds += 1
                self.rounds += 1
                sent += len(payload)
                payload = run.send(await self.exchange(payload))
                if (now := time.perf_counter()) - turn > TURN_S:
                    await asyncio.sleep(0)
                    turn = now
        except StopIteration as end:
            return end.value, Meter(rounds, sent, time.perf_counter() - start)
        except Stopped:
            if stop is not None:
                await self._say(stop)
            raise
        finally:
            run.close()

    def mark(self) -> None:
        """What is read after this belongs to the next inference: the other side gave this one up.
        To be called as its word comes."""
        self._inbox.append(None)
        self._wake()

    async def _say(self, stop: Stop) -> None:
        if not stop.said:
            stop.said = True
            await self.decline(gone(), stop.ids)

    async def _drain(self) -> None:
        """Read what the other side sent before it gave up too; raises Stopped then."""
        while True:
            await self._payload()

    async def pump(self) -> None:
        """Read frames until the stream ends; then every waiter gets an error, and so does the
        caller. Raises PeerUnavailable, MalformedMessage, or what the peer's abort names."""
        try:
            await self._carrier.run(self._take)
        except BaseException as error:
            self._lost = error
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(PeerUnavailable("the link to the other party is lost"))
            raise

    def _take(self, frame: Frame) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "payload":
            # A peer is at most one round ahead: it cannot go on before it has our payload.
            payload = frame.payload  # every look at it is a copy
            self._unread += len(payload)
            if self._unread > MAX_UNREAD or not payload:
                raise MalformedMessage("payload", got="none, or far too much of it")
            self._inbox.append(payload)
            self._wake()
        elif kind == "begin" and self.on_begin is not None:
            self.on_begin(_from_begin(frame.begin), frame.begin.first_item)
        elif kind == "stage" and self.on_stage is not None:
            self.on_stage(frame.stage)
        elif kind == "abort" and frame.abort.request_ids and self.on_decline is not None:
            self.on_decline(_hexed(frame.abort.request_ids), from_abort(frame.abort))
        elif kind == "abort":
            raise PeerUnavailable(
                "the other party ended the session", got=from_abort(frame.abort).what
            )
        else:
            raise MalformedMessage("frame", got=_name(frame), expected="payload, begin or abort")

    async def _payload(self, *, look: bool = False) -> bytes:
        while not self._inbox:
            if self._lost is not None:
                raise PeerUnavailable("the link to the other party is lost")
            if look and self._looked():
                continue
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        payload = self._inbox.popleft()
        if payload is None:
            raise Stopped
        self._unread -= len(payload)
        return payload

    def _looked(self) -> bool:
        """Whether something came while the loop stood still; not even tried for a while after
        nothing did."""
        if self._unlooked:
            self._unlooked -= 1
            return False
        found = self._carrier.look(LOOK_S)
        self._misses = 0 if found else min(2 * self._misses + 1, MISSES)
        self._unlooked = self._misses
        return found

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _write(self, payload: bytes) -> None:
        for start in range(0, len(payload), CHUNK):
            self._carrier.write(self._kind(payload=payload[start : start + CHUNK]))

    async def _send(self, frame: Frame) -> None:
        self._carrier.write(frame)
        await self._carrier.drain()


def _to_begin(job: Job, first_item: int) -> LinkBegin:
    return LinkBegin(
        model_hash=job.model,
        request_ids=[bytes.fromhex(each) for each in job.ids],
        batches=job.batches,
        first_item=first_item,
        wait_ms=int(job.wait_s * 1000),
        callers=job.callers,
    )


def _from_begin(begin: LinkBegin) -> Job:
    wait_s = min(begin.wait_ms / 1000, LONGEST_S)
    ids = _hexed(begin.request_ids)
    return Job(begin.model_hash, ids, tuple(begin.batches), tuple(begin.callers), wait_s)


def _hexed(request_ids: Iterable[bytes]) -> Ids:
    return tuple(each.hex() for each in request_ids)


def _name(frame: Frame) -> str:
    return frame.WhichOneof("frame") or "nothing"
