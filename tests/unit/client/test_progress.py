"""How far an inference is: who is told, when, in what thread; and that nobody pays otherwise."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from unit.client.test_driver import DRIVERS, Async, Refused
from unit.mpc.protocol import graphs

from secure_quant.errors import ConfigError
from secure_quant.he.plan import plan as he_plan
from secure_quant.ir.course import Course, Step
from secure_quant.mpc.protocol.plan import plan
from secure_quant.onehost.order import exchanges
from secure_quant.onehost.plan import plan as onehost_plan
from secure_quant.wire.gen.share_progress_pb2 import WatchResponse
from secure_quant_client.driver import Deadline
from secure_quant_client.he.model import Request
from secure_quant_client.he.model import Watch as HeWatch
from secure_quant_client.mpc.model import MpcModel, Watch
from secure_quant_client.onehost.model import Watch as OneHostWatch
from secure_quant_client.onehost.model import _paused
from secure_quant_client.program import OLDEST, Ahead, Call, Told, Watching
from secure_quant_client.progress import Progress, Telling


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_at_most_four_words_a_second_none_back_and_the_last() -> None:
    clock, told = Clock(), list[Progress]()
    telling = Telling(told.append, clock)
    for number in range(1000):
        telling(Progress(number / 1000 if number % 3 else 0.0, number, 1000, "a"))
        clock.now += 0.01
    assert 36 <= len(told) <= 41
    assert [each.fraction for each in told] == sorted({each.fraction for each in told})
    telling.end()
    assert told[-1] == Progress(1.0, 1000, 1000)


def test_a_short_inference_has_one_word_at_its_end() -> None:
    told = list[Progress]()
    Telling(told.append).end()
    assert told == [Progress(1.0, 0, 0)]


def test_what_cannot_be_called_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="progress: got int"):
        Telling(3)  # type: ignore[arg-type]


def streaming(stubs: list[Any], answers: list[int], ends: bool = True) -> None:
    """Gives each stub a stream of ``answers``; it refuses the rest, or stays open."""

    class Stream:
        def __init__(self) -> None:
            self.left, self.cancelled = iter(answers), threading.Event()

        def __iter__(self) -> Iterator[int]:
            yield from self.left
            if not ends:
                self.cancelled.wait(30)
            raise Refused

        async def read(self) -> int:
            for each in self.left:
                return each
            if not ends:
                await asyncio.sleep(30)
            raise Refused

        def cancel(self) -> None:
            self.cancelled.set()

    for stub in stubs:
        stub.streams = []

        def watch(request: Any, *, timeout: float, metadata: Any, stub: Any = stub) -> Stream:
            assert metadata == (("who", "me"),)
            stub.streams.append(Stream())
            return stub.streams[-1]

        stub.Watch = watch


def driven(driver: Any, program: Any, tell: Any) -> Any:
    run = driver._run(program, Deadline(30), tell)
    return asyncio.run(run) if isinstance(driver, Async) else run


def watched(answer: str = "x") -> Any:
    yield Ahead([Call("Echo", answer)])
    yield Watching.by(Call("Watch", "w"), lambda n: Progress(n / 10, n, 10))
    yield Told.of(Progress(0.9, 9, 10))
    yield Told()
    return (yield OLDEST)


@DRIVERS
@pytest.mark.parametrize("ends", [True, False])
def test_words_come_from_streams_and_programs_on_the_callers_thread(make: Any, ends: bool) -> None:
    driver, told = make(), list[tuple[int, int]]()
    streaming(driver._stubs, [1, 2], ends)

    def tell(progress: Progress) -> None:
        told.append((progress.done, threading.get_ident()))
        if progress.done == 2:
            release()

    def release() -> None:
        driver._stubs[0].under_way["open"].set_result("open")

    assert driven(driver, watched("open"), tell) == ["open"]
    assert sorted(done for done, _ in told) == [1, 2, 9]
    assert {thread for _, thread in told} == {threading.get_ident()}


@DRIVERS
def test_what_whoever_is_told_raises_ends_the_inference(make: Any) -> None:
    driver = make()
    streaming(driver._stubs, [1], ends=False)

    def tell(progress: Progress) -> None:
        if progress.done == 1:
            raise KeyError("of the caller's own")

    with pytest.raises(KeyError, match="own"):
        driven(driver, watched("open"), tell)
    assert driver._stubs[0].cancelled() == ["open"]


@DRIVERS
def test_a_server_that_knows_no_such_call_serves_as_well(make: Any) -> None:
    driver, told = make(), list[Progress]()
    streaming(driver._stubs, [])
    assert driven(driver, watched(), told.append) == ["x"]
    assert [each.done for each in told] == [9]


def sent(watched: bool) -> list[Any]:
    """All that an inference of secret sharing sends, but for what is random."""
    graph = graphs.mlp().public()
    program = MpcModel(graph, 2).infer(np.zeros((3, 64), np.int8), Deadline(30), watched=watched)
    found: list[Any] = []
    step = next(program)
    while step:
        found += [(type(step), each.method, each.server, each.request.ByteSize()) for each in step]
        step = program.send([])
    program.close()
    return found


def test_without_a_callback_no_message_and_no_byte_more() -> None:
    plain, more = sent(watched=False), sent(watched=True)
    assert [method for _, method, _, _ in plain] == ["Infer"] * 4
    assert [each for each in more if each[1] != "Watch"] == plain
    assert sum(each[1] == "Watch" for each in more) == 2


def test_the_parts_of_an_input_add_up_whatever_a_server_says() -> None:
    graph = graphs.mlp().public()
    model, watch = MpcModel(graph, 2), Watch(graph, 4)
    first, second = (watch.part(part) for part in model.parts(np.zeros((4, 64), np.int8)))
    name = graph.nodes[2].name
    word = WatchResponse(rounds=5, of=10, thousandths=500, stage=name)
    assert first.hear(word) == Progress(0.25, 5, 10, name)
    assert second.hear(word) == Progress(0.5, 10, 20, name)
    lie = WatchResponse(rounds=2**32 - 1, of=1, thousandths=2**32 - 1, stage="x" * 1000)
    assert second.hear(lie) == Progress(0.75, 11, 11, "")


@pytest.mark.parametrize("name", graphs.ALL)
def test_the_course_of_a_plan(name: str) -> None:
    graph = graphs.ALL[name]().public()
    made = plan(graph)
    steps = [Step(gate.name, gate.inputs, len(gate.payloads)) for gate in made.gates]
    course = Course(graph, steps, made.rounds)
    shares = [course.at(rounds).thousandths for rounds in range(made.rounds + 1)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] == 1000 > shares[-2] > 250
    names = {node.name for node in graph.nodes}
    assert all(course.at(rounds).stage in names for rounds in range(made.rounds))
    assert course.at(made.rounds + 9).rounds == made.rounds
    both = course.at(made.rounds + 1, 2)
    assert (both.of, both.rounds) == (2 * made.rounds, made.rounds + 1)
    assert 500 <= both.thousandths < 1000


def test_layers_at_the_server_and_exchanges_with_one_host() -> None:
    graph = graphs.lenet().public()
    layers = he_plan(graph)
    watch = HeWatch(layers, 2)
    words = [
        watch.before([Request(step, 1, b"")]).progress for _ in range(2)
        for step in range(len(layers.steps))
    ]  # fmt: skip
    assert [word.done for word in words if word] == list(range(10))
    fractions = [word.fraction for word in words if word]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[5] == pytest.approx(0.5)
    assert [word.stage for word in words if word][:5] == [step.node for step in layers.steps]
    one = onehost_plan(graph)
    assert sum(exchanges(gate) for gate in one.gates) >= one.flights - 1
    client = OneHostWatch(one, 2)
    before = client.at(one.flights // 2).progress
    client.next()
    after = client.at(one.flights // 2).progress
    assert before is not None
    assert after is not None
    assert after.fraction == pytest.approx(before.fraction + 0.5, abs=0.002)
    assert after.of == 2 * one.flights


def test_with_one_host_an_inference_that_is_given_up_in_a_pause_ends_there() -> None:
    ended = list[BaseException]()

    def running() -> Iterator[int]:
        try:
            yield 1
        except BaseException as error:
            ended.append(error)
            raise

    program = _paused(running(), None)  # type: ignore[arg-type]
    assert isinstance(next(program), Told)
    program.close()
    assert [type(each) for each in ended] == [GeneratorExit]
