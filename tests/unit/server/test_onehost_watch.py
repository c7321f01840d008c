"""Silence is noticed once it has lasted, with one timer whatever there was to hear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from secure_quant_server.onehost.watch import Watch


class Loop:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now, self.made = 100.0, 0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, what: Callable[[], None]) -> Any:
        entry = (self.now + seconds, what)
        self.timers.append(entry)
        self.made += 1
        return type("Handle", (), {"cancel": lambda _: self.timers.remove(entry)})()

    def pass_by(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = first[0]
            first[1]()
        self.now = end


def watched(seconds: float) -> tuple[Any, Watch, list[float]]:
    loop, late = Loop(), list[float]()
    return loop, Watch(loop, seconds, lambda: late.append(loop.now)), late  # type: ignore[arg-type]


def test_silence_is_noticed_when_it_has_lasted() -> None:
    loop, watch, late = watched(2.0)
    loop.pass_by(50)
    assert late == []  # nothing was awaited
    watch.heard()
    loop.pass_by(1.5)
    watch.heard()
    loop.pass_by(1.5)
    assert late == []
    loop.pass_by(50)
    assert late == [153.5]  # two seconds after the last sign, and once


def test_many_signs_take_one_timer() -> None:
    loop, watch, late = watched(2.0)
    for _ in range(1000):
        watch.heard()
        loop.pass_by(0.001)
    assert loop.made == 1
    watch.rest()
    loop.pass_by(50)
    assert late == []
    watch.heard()
    loop.pass_by(2)
    assert len(late) == 1


def test_a_watch_that_stopped_says_nothing() -> None:
    loop, watch, late = watched(2.0)
    watch.heard()
    watch.stop()
    assert loop.timers == []
    watch.stop()
    loop.pass_by(50)
    assert late == []
