"""The drivers, with programs and servers made up: no network."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc
import pytest

from secure_quant.errors import DeadlineExceeded, Overloaded, ServiceError
from secure_quant_client import advance
from secure_quant_client.driver import AsyncDriver, Deadline, SyncDriver
from secure_quant_client.program import OLDEST, Ahead, Call, Program

SECONDS = 30


class Refused(grpc.RpcError):
    """What a call raises whose server has no room."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.RESOURCE_EXHAUSTED

    def details(self) -> str:
        return "no room"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class Pending(Future):
    """A call under way, as gRPC has them for threads."""

    def code(self) -> grpc.StatusCode:
        fine = not self.cancelled() and self.exception() is None
        return grpc.StatusCode.OK if fine else grpc.StatusCode.CANCELLED


class Stub:
    """Answers with the request itself; refuses "bad" at once, and "open" is never answered. Notes
    what was asked and what was cancelled."""

    def __init__(self, threads: bool) -> None:
        self.asked: list[Any] = []
        self.blocking: list[Any] = []
        self.under_way: dict[Any, Any] = {}
        self.Echo: Any = _Method(self) if threads else self._awaited

    def _started(self, request: Any, make: Callable[[], Any], timeout: float, metadata: Any) -> Any:
        assert 0 < timeout <= SECONDS
        assert metadata == (("who", "me"),)
        self.asked.append(request)
        call = self.under_way[request] = make()
        if request == "bad":
            call.set_exception(Refused())
        elif request != "open":
            call.set_result(request)
        return call

    def _awaited(self, request: Any, *, timeout: float, metadata: Any) -> Any:
        make = asyncio.get_running_loop().create_future
        return self._started(request, make, timeout, metadata)

    def cancelled(self) -> list[Any]:
        return [request for request, call in self.under_way.items() if call.cancelled()]


class _Method:
    def __init__(self, stub: Stub) -> None:
        self._stub = stub

    def __call__(self, request: Any, *, timeout: float, metadata: Any) -> Any:
        self._stub.blocking.append(request)
        return self.future(request, timeout=timeout, metadata=metadata).result()

    def future(self, request: Any, *, timeout: float, metadata: Any) -> Pending:
        return self._stub._started(request, Pending, timeout, metadata)


class Sync(SyncDriver):
    def __init__(self, servers: int = 1) -> None:
        self._stubs, self._closed = [Stub(threads=True) for _ in range(servers)], False
        self._metadata = (("who", "me"),)

    def run(self, program: Program[Any], seconds: float = SECONDS) -> Any:
        return self._run(program, Deadline(seconds))


class Async(AsyncDriver):
    def __init__(self, servers: int = 1, heavy: bool = False) -> None:
        self._stubs, self._closed = [Stub(threads=False) for _ in range(servers)], False
        self._metadata, self._heavy = (("who", "me"),), heavy

    def run(self, program: Program[Any], seconds: float = SECONDS) -> Any:
        return asyncio.run(self._run(program, Deadline(seconds)))


class InThreads(Async):
    def __init__(self, servers: int = 1) -> None:
        super().__init__(servers, heavy=True)


DRIVERS = pytest.mark.parametrize("make", [Sync, Async, InThreads])


def echo(*requests: Any) -> list[Call]:
    return [Call("Echo", request) for request in requests]


@DRIVERS
def test_answers_come_in_the_order_of_the_calls_whatever_server_they_go_to(make: Any) -> None:
    def program() -> Program[Any]:
        first = yield [Call("Echo", n, n % 3) for n in range(6)]
        second = yield echo("x")
        return [*first, *second]

    driver = make(3)
    assert driver.run(program()) == [0, 1, 2, 3, 4, 5, "x"]
    assert [stub.asked for stub in driver._stubs] == [[0, 3, "x"], [1, 4], [2, 5]]


def test_a_lone_call_needs_no_second_thread() -> None:
    def program() -> Program[None]:
        yield echo("alone")
        yield echo("one", "two")

    driver = Sync()
    driver.run(program())
    assert driver._stubs[0].blocking == ["alone"]


@DRIVERS
def test_a_program_may_do_without_calls(make: Any) -> None:
    def program() -> Program[str]:
        yield from ()
        return "done"

    assert make().run(program()) == "done"


@DRIVERS
def test_what_goes_ahead_is_not_waited_for_and_the_oldest_comes_first(make: Any) -> None:
    def program() -> Program[Any]:
        found = []
        for n in range(5):
            assert (yield Ahead(echo((n, 0), (n, 1)))) == []
            if n > 2:
                found.append((yield OLDEST))
        while len(found) < 5:
            found.append((yield OLDEST))
        return found

    assert make().run(program()) == [[(n, 0), (n, 1)] for n in range(5)]


@DRIVERS
def test_a_call_that_fails_is_raised_where_it_was_yielded_and_may_be_met(make: Any) -> None:
    def program() -> Program[Any]:
        try:
            yield echo("bad", "open")
        except Overloaded as error:
            return error.what, (yield echo("again"))

    driver = make()
    assert driver.run(program()) == ("no room", ["again"])
    assert driver._stubs[0].cancelled() == ["open"]


@DRIVERS
@pytest.mark.parametrize("ahead", [False, True])
def test_one_that_is_not_met_ends_the_program_and_every_call(make: Any, ahead: bool) -> None:
    ended = []

    def program() -> Program[None]:
        try:
            yield Ahead(echo("open"))
            if ahead:
                yield Ahead(echo("bad"))
                yield OLDEST if make is not Sync else echo("bad")
            yield echo("bad")
        finally:
            ended.append(True)

    driver = make()
    with pytest.raises(Overloaded, match="no room") as kept:
        driver.run(program())
    assert ended == [True]
    assert driver._stubs[0].cancelled() == ["open"]
    assert kept.value.__cause__ is not None


@DRIVERS
def test_what_a_program_raises_itself_ends_its_calls_too(make: Any) -> None:
    def program() -> Program[None]:
        yield Ahead(echo("open"))
        raise KeyError("mine")

    driver = make()
    with pytest.raises(KeyError, match="mine"):
        driver.run(program())
    assert driver._stubs[0].cancelled() in (["open"], [])
    assert not [c for c in driver._stubs[0].under_way.values() if not c.done()]


@DRIVERS
def test_nothing_is_asked_after_the_deadline(make: Any) -> None:
    waited = threading.Event()

    def program() -> Program[None]:
        yield echo(1)
        waited.wait(0.3)
        with pytest.raises(DeadlineExceeded):
            yield echo(2)
        yield echo(3)

    driver = make()
    with pytest.raises(DeadlineExceeded):
        driver.run(program(), 0.25)
    assert driver._stubs[0].asked in ([1], [])


@DRIVERS
def test_a_channel_that_was_closed_is_named(make: Any) -> None:
    ended = []

    def program() -> Program[None]:
        try:
            yield echo(1)
        finally:
            ended.append(True)

    driver = make()

    def closed(*_: Any, **__: Any) -> None:
        raise ValueError("Cannot invoke RPC on closed channel!")

    driver._stubs[0].Echo = closed
    with pytest.raises(ValueError, match="closed channel") as kept:
        driver.run(program())
    assert kept.value.__traceback__ is not None  # it holds the driver's frame, and that the program
    assert ended == [True]
    driver._closed = True
    with pytest.raises(ServiceError, match="the client is closed"):
        driver.run(program())


def test_a_step_in_a_thread_leaves_the_loop_free_and_ends_its_program_when_nobody_waits() -> None:
    """The task is cancelled in the midst of a step: at once, though the step goes on; the program
    is closed as soon as the step is over, and no call of it goes out."""
    entered, go_on, ended = (threading.Event() for _ in range(3))

    def program() -> Program[None]:
        try:
            entered.set()
            assert go_on.wait(SECONDS)
            yield echo("too late")
        finally:
            ended.set()

    async def use() -> None:
        driver = InThreads()
        task = asyncio.ensure_future(driver._run(program(), Deadline(SECONDS)))
        assert await asyncio.to_thread(entered.wait, SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as kept:
            await task
        assert not ended.is_set()
        go_on.set()
        assert await asyncio.to_thread(ended.wait, SECONDS)
        assert driver._stubs[0].asked == []
        assert kept.value is not None  # and with it every frame that knew the program

    asyncio.run(use())


def test_a_task_that_is_cancelled_while_it_waits_cancels_every_call() -> None:
    ended = []

    def program() -> Program[None]:
        try:
            yield Ahead(echo("open"))
            yield OLDEST
        finally:
            ended.append(True)

    async def use(driver: Async) -> None:
        task = asyncio.ensure_future(driver._run(program(), Deadline(SECONDS)))
        while not driver._stubs[0].asked:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert driver._stubs[0].cancelled() == ["open"]

    for driver in (Async(), InThreads()):
        asyncio.run(use(driver))
    assert ended == [True, True]


@pytest.mark.parametrize(
    ("header", "sent"), [({"secure-quant-taken": "1"}, [1, 2, 3]), (None, [1, 2, 3]), ({}, [1])]
)
def test_an_upload_waits_for_the_servers_word_but_not_for_ever(
    header: dict[str, str] | None, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: a server of before, which sends no header until the call ends. {}: a refusal."""
    monkeypatch.setattr(advance, "TAKEN_S", 0.05)

    class Begun:
        async def initial_metadata(self) -> list[tuple[str, str]]:
            if header is None:
                await asyncio.Event().wait()
            return list((header or {}).items())

        async def code(self) -> None:
            """The call has ended."""

    async def use() -> list[int]:
        gate = advance.Gate(iter([1, 2, 3]))
        gate.call = Begun()
        return [each async for each in gate.pieces()]

    assert asyncio.run(use()) == sent
