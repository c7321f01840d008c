"""The process of one lane.

The first message of its front is the configuration. The process ends when the front closes its end
of the pipe, and while the front does not run, the lane serves nobody: the other party is to see it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import socket
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import uvloop

from secure_quant.errors import (
    DeadlineExceeded,
    InternalError,
    MalformedMessage,
    PeerUnavailable,
    SecureQuantError,
)
from secure_quant.mpc.protocol.bundle import load_party
from secure_quant.mpc.protocol.party import PartyProgram
from secure_quant.mpc.runtime.carriers import GrpcCarrier, StreamCarrier, dial_carrier
from secure_quant.mpc.runtime.deals import DealerStream, open_deal
from secure_quant.mpc.runtime.hello import check_hello, make_hello
from secure_quant.mpc.runtime.jobs import Ids, Job
from secure_quant.mpc.runtime.link import PartyLink
from secure_quant.mpc.runtime.session import (
    Border,
    LaneSession,
    make_stock,
)
from secure_quant.transport import FrameStream, SwappedTls, Tls, aio_channel, listen_stream
from secure_quant.wire.gen import party_link_pb2_grpc
from secure_quant.wire.gen.party_link_pb2 import ExchangeResponse, LinkHello
from secure_quant_server.common import Access, GrpcServer, ServerOptions, last_word, logs
from secure_quant_server.common.bundles import Bundle
from secure_quant_server.common.memory import give_back_after_bursts
from secure_quant_server.common.messages import (
    MessagePipe,
    Ping,
    Pong,
    error_from_bytes,
    error_to_bytes,
)
from secure_quant_server.mpc.config import LaneConfig, swap
from secure_quant_server.mpc.desk import FrontDesk
from secure_quant_server.mpc.messages import (
    TO_WORKER,
    Certificates,
    Drop,
    Failed,
    Ready,
    Retract,
    Setup,
    Share,
    Step,
    Watch,
)

__all__ = ["serve"]

LINK_SERVICE = "secure_quant.v1.PartyLinkService"
GREETING_S = 5.0
BACKOFF_S = (0.05, 0.5)
LOOK_S = 0.5
FRONT_SILENCE_S = 5.0
"""A front asks its workers more than once a second whether they live."""
SAID_S = 30.0
"""A session that ends as the last one did is logged again after so long."""

STEP_S = 0.25
"""Between two words of how far a job is that somebody watches."""

T = TypeVar("T")


class _Worker:
    def __init__(self, config: LaneConfig, pipe: MessagePipe, border: Border) -> None:
        self._config, self._pipe, self._border = config, pipe, border
        self._place = config.place
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._front_runs = asyncio.Event()
        self._front_runs.set()
        self._said, self._said_at = "", 0.0
        loaded = [load_party(each) for each in config.bundles if not isinstance(each, Bundle)]
        self._programs: Mapping[str, PartyProgram] = {each.model_hash: each for each in loaded}
        self._desk = FrontDesk(pipe)
        self._session: LaneSession | None = None
        self._current: asyncio.Task[Any] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watched: set[str] = set()

    async def serve(self) -> None:
        """Until the front closes the pipe."""
        link = self._dial() if self._place.party == 0 else self._listen()
        work = (link, self._obey(), self._mind_the_front())
        tasks = [asyncio.create_task(each) for each in work]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()

    async def _obey(self) -> None:
        while True:
            try:
                message = await self._pipe.receive()
            except InternalError:
                return  # the front is gone, and so is the reason to be
            self._heard = self._loop.time()
            if isinstance(message, Ping):
                last_word.renew()
                self._tell(Pong())
            elif isinstance(message, Job) and self._place.party == 1:
                self._desk.pushed(message)
            elif isinstance(message, Job):
                task = asyncio.create_task(self._infer(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif isinstance(message, Certificates):
                self._certify(message)
            elif isinstance(message, Watch):
                self._watch(message)
            elif isinstance(message, Drop):
                if self._session is not None:
                    self._session.drop(message.id)
            elif isinstance(message, Retract):
                self._desk.retracted(message.id)
            elif isinstance(message, Share):
                self._desk.arrived(message.ids, message.body)
            elif isinstance(message, Failed):
                self._desk.arrived(message.ids, None, error_from_bytes(message.body))

    def _certify(self, message: Certificates) -> None:
        try:
            swap(self._config.security, message)
        except SecureQuantError as error:  # those that it has may still do
            logs.event("certificates not taken", level=logging.WARNING, reason=str(error))

    def _watch(self, message: Watch) -> None:
        if not message.on:
            self._watched.discard(message.id)
            return
        self._watched.add(message.id)
        if len(self._watched) == 1:
            task = asyncio.create_task(self._tell_steps())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell_steps(self) -> None:
        """While somebody watches."""
        before: tuple[Ids, int] | None = None
        while self._watched:
            now = None if self._session is None else self._session.progress()
            if now is not None and now != before and not self._watched.isdisjoint(now[0]):
                self._tell(Step(*now))
            before = now
            await asyncio.sleep(STEP_S)

    async def _mind_the_front(self) -> None:
        """End the session while the front says nothing, and have no other until it does."""
        while True:
            asleep = self._loop.time()
            await asyncio.sleep(LOOK_S)
            now = self._loop.time()
            if now - asleep > 2 * LOOK_S:  # this process did not run; what it was told is unread
                self._heard = now
            elif now - self._heard < FRONT_SILENCE_S:
                self._front_runs.set()
            elif self._front_runs.is_set():
                self._front_runs.clear()
                if self._session is not None:
                    self._session.end(PeerUnavailable("this party's front does not run"))

    async def _infer(self, job: Job) -> None:
        """Party 0: one job of the front."""
        try:
            if self._session is None or not self._session.ready.is_set():
                raise PeerUnavailable("this lane has no session with the other party now")
            answer = await self._session.infer(job)
        except Exception as error:  # noqa: BLE001  a job's trouble is its own, and is told
            if not isinstance(error, SecureQuantError):
                self._unforeseen(error)
                error = InternalError("this party's lane failed on the request")
            self._tell(Failed(job.ids, error_to_bytes(error)))
        else:
            self._tell(answer)

    def _unforeseen(self, error: Exception) -> None:
        logs.failure("job failed", error, lane=self._place.lane)

    def _tell(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except InternalError:
            return  # the front went first; `_obey` ends this process

    async def _dial(self) -> None:
        """Party 0: one session after another, with growing pauses while they fail at once."""
        pause, longest = BACKOFF_S
        while True:
            await self._front_runs.wait()
            started = self._loop.time()
            try:
                await self._offer_session()
            except Exception as error:  # noqa: BLE001  the next session may do better
                self._ended(error)
            if self._loop.time() - started > 10.0:
                pause = BACKOFF_S[0]
            await asyncio.sleep(pause * (0.5 + secrets.randbelow(1000) / 1000))
            pause = min(pause * 2, longest)

    async def _offer_session(self) -> None:
        config, session_id = self._config, secrets.token_bytes(16)
        dialled = dial_carrier(self._place.link, config.security, config.options.link_protocol)
        async with dialled as carrier:
            link = PartyLink(carrier)
            await _in_time(link.greet(make_hello(session_id, self._place.lane, self._programs)))
            theirs = await _in_time(link.greeted())
            check_hello(theirs, self._place.lane, self._programs)
            if theirs.session_id != session_id:
                raise MalformedMessage("session id", expected="the one that was offered")
            await self._run_session(link, theirs)

    async def _listen(self) -> None:
        """Party 1: the port of this lane's link, until cancelled."""
        if self._config.options.link_protocol == "tls":
            listening = listen_stream(
                self._place.link, self._config.security,
                caller_role="party0", serve=self._accept_stream,
            )  # fmt: skip
            async with listening:
                logs.event("link listens", address=self._place.link)
                await asyncio.Event().wait()
        access = Access({LINK_SERVICE: frozenset({"party0"})})
        options = ServerOptions(
            listen=self._place.link, security=self._config.security, reflection=False, grace_s=0.5
        )
        server = GrpcServer(options, access, [LINK_SERVICE], role="party1")
        party_link_pb2_grpc.add_PartyLinkServiceServicer_to_server(_Link(self), server.server)
        await server.start()
        server.set_serving(True)
        try:
            await asyncio.Event().wait()
        finally:
            await server.stop()

    async def _accept_stream(self, stream: FrameStream) -> None:
        link = PartyLink(StreamCarrier(ExchangeResponse, stream))
        try:
            await self.accept_session(link)
        except Exception as error:  # noqa: BLE001  the next session may do better
            self._ended(error)
            if not isinstance(error, SecureQuantError):
                error = InternalError("this party's lane failed")
            with suppress(PeerUnavailable):
                await link.decline(error)

    def _ended(self, error: Exception) -> None:
        lane, now = self._place.lane, self._loop.time()
        if isinstance(error, SecureQuantError):
            said, self._said = self._said, str(error)
            if said != self._said or now - self._said_at > SAID_S:
                self._said_at = now
                logs.event("session ended", lane=lane, reason=self._said)
        else:
            logs.failure("session failed", error, lane=lane)

    async def accept_session(self, link: PartyLink) -> None:
        """Party 1: serve one link; raises when it ends."""
        hello = await _in_time(link.greeted())
        check_hello(hello, self._place.lane, self._programs)
        if not self._front_runs.is_set():
            raise PeerUnavailable("the other party's front does not run")
        # A newer link replaces an older one: party 0 has given that up, seen from here or not.
        before, self._current = self._current, asyncio.current_task()
        if before is not None and not before.done():
            before.cancel()
            await asyncio.wait([before])
        mine = make_hello(hello.session_id, self._place.lane, self._programs)
        await link.greet(mine)
        await self._run_session(link, hello)

    async def _run_session(self, link: PartyLink, hello: LinkHello) -> None:
        """hello: the other party's."""
        config, session_id = self._config, hello.session_id
        stock = make_stock(self._place.party, self._programs, config.options)
        async with aio_channel(
            self._place.dealer, config.security, server_role="dealer"
        ) as channel:
            call = open_deal(channel)
            try:
                dealer = DealerStream(stock, call, self._place.party)
                splits = {name: program.split for name, program in self._programs.items()}
                await _in_time(
                    dealer.open(session_id, self._place.lane, list(self._programs), splits)
                )
                session = LaneSession(
                    self._place.party, self._programs, link, dealer, stock,
                    border=self._border, desk=self._desk if self._place.party == 1 else None,
                    options=config.options, unforeseen=self._unforeseen,
                    stops=hello.stops,
                )  # fmt: skip
                self._session = session
                announcer = asyncio.create_task(self._announce(session))
                try:
                    await session.run()
                finally:
                    announcer.cancel()
                    self._session = None
                    self._say_ready(ready=False)
            finally:
                call.cancel()

    async def _announce(self, session: LaneSession) -> None:
        """Tell the front; then as long as the session lives."""
        await session.ready.wait()
        logs.event("lane ready", lane=self._place.lane)
        # What start-up made stays for good; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        self._say_ready(ready=True)
        await give_back_after_bursts(lambda: session.rounds)

    def _say_ready(self, *, ready: bool) -> None:
        self._tell(Ready(ready))


class _Link(party_link_pb2_grpc.PartyLinkServiceServicer):
    def __init__(self, worker: _Worker) -> None:
        self._worker = worker

    async def Exchange(  # type: ignore[override]  # noqa: N802  reads and writes by the context
        self, request_iterator: Any, context: Any
    ) -> None:
        """See party_link.proto."""
        await self._worker.accept_session(
            PartyLink(GrpcCarrier(ExchangeResponse, context.read, context.write))
        )


async def _in_time(step: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(GREETING_S):
            return await step
    except TimeoutError as error:
        raise DeadlineExceeded("the peer does not answer", got=f"{GREETING_S} s") from error


async def _main(link: socket.socket) -> None:
    logs.follow_tasks()
    pipe = await MessagePipe.over(link, TO_WORKER, views=True)
    try:
        while not isinstance(setup := await pipe.receive(), Setup):
            pipe.send(Pong())
        config = LaneConfig.from_setup(setup)
        if isinstance(config.security, Tls):
            config = replace(config, security=SwappedTls(config.security))
        await _Worker(config, pipe, _border(config)).serve()
    finally:
        pipe.close()


def _border(config: LaneConfig) -> Border:
    if config.options.border == "none":
        return lambda share: share
    from secure_quant_server.mpc.crypten_border import crypten_border  # loads CrypTen and torch

    return crypten_border


def serve(link: socket.socket) -> int:
    """Entry point of the process: until the front hangs up; the exit status."""
    try:
        uvloop.run(_main(socket.socket(fileno=link.detach())))
    except SecureQuantError as error:
        logs.event("lane failed", level=logging.ERROR, reason=str(error))
        return 1
    return 0
