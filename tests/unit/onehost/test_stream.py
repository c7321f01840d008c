"""Runs over a stream of bytes: pieces in any cut, no byte more than the plan says."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from patience import ample

from secure_quant.errors import DeadlineExceeded, MalformedMessage, PeerUnavailable
from secure_quant.onehost.exchange import Joint, swap
from secure_quant.onehost.stream import HELD, PIECE, Course, Inbox, drive, pieces


def talk(own: list[bytes], peer: list[bytes]) -> Joint[list[bytes]]:
    heard = []
    for sent, expected in zip(own, peer, strict=True):
        heard.append((yield from swap(sent, len(expected))))
    return heard


def test_two_ends_over_bytes_cut_anywhere() -> None:
    rng = np.random.default_rng(5)
    first = [rng.bytes(n) for n in (0, 3, PIECE + 5, 0, 17, 0)]
    second = [rng.bytes(n) for n in (9, 0, 3 * PIECE, 0, 0, 1)]
    inboxes = [Inbox(sum(map(len, second))), Inbox(sum(map(len, first)))]
    lines: list[SimpleQueue[bytes]] = [SimpleQueue(), SimpleQueue()]
    made: list[Any] = [None, None]

    def carry(end: int, total: int) -> None:
        """To the inbox of ``end``, in other pieces than were sent."""
        while total:
            data = lines[end].get(timeout=ample(20))
            assert 0 < len(data) <= PIECE
            cut = max(1, len(data) // 3)
            for piece in (data[:cut], data[cut:]):
                if piece:
                    inboxes[end].feed(piece)
            total -= len(data)

    def run(end: int, own: list[bytes], peer: list[bytes]) -> None:
        made[end] = drive(talk(own, peer), lines[1 - end].put, inboxes[end], lambda: ample(20))

    threads = [threading.Thread(target=carry, args=(end, sum(map(len, peer))))
               for end, peer in enumerate((second, first))]  # fmt: skip
    threads += [threading.Thread(target=run, args=(end, *each))
                for end, each in enumerate(((first, second), (second, first)))]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ample(30))
    assert made[0].result == second
    assert made[1].result == first
    for end, own, peer in ((0, first, second), (1, second, first)):
        assert (made[end].sent, made[end].received) == (sum(map(len, own)), sum(map(len, peer)))
        assert made[end].flights == 5  # one exchange is empty both ways
        assert inboxes[end].complete


def test_an_inbox_takes_no_more_than_its_run() -> None:
    inbox = Inbox(5)
    inbox.feed(b"abc")
    assert not inbox.complete
    for data in (b"", b"def"):
        with pytest.raises(MalformedMessage, match="left of a run"):
            inbox.feed(data)
    inbox.feed(b"de")
    assert inbox.complete
    assert inbox.take(5, 1.0) == b"abcde"
    with pytest.raises(MalformedMessage):
        inbox.feed(b"f")


def test_waiting_ends_with_time_and_with_an_error() -> None:
    inbox = Inbox(5)
    with pytest.raises(DeadlineExceeded):
        inbox.take(1, 0.01)
    inbox.feed(b"a")
    inbox.fail(PeerUnavailable("gone"))
    inbox.fail(MalformedMessage("later"))
    assert inbox.take(1, 0.01) == b"a"  # what has come may be used
    with pytest.raises(PeerUnavailable, match="gone"):
        inbox.take(1, ample(60))


def test_a_run_that_fails_is_closed() -> None:
    ended = []

    def run() -> Joint[None]:
        try:
            yield from swap(b"x", 4)
        finally:
            ended.append(True)

    with pytest.raises(DeadlineExceeded):
        drive(run(), lambda _: None, Inbox(4), lambda: 0.01)
    assert ended == [True]


def test_pieces_are_the_message() -> None:
    message = bytes(range(256)) * 3000
    made = pieces(message)
    assert b"".join(made) == message
    assert max(map(len, made)) == PIECE
    assert pieces(b"") == []


def opposite(
    own: list[bytes], peer: list[bytes], cuts: int = 1
) -> tuple[list[Course[Any]], list[list[bytes]]]:
    """Two ends that push each other on, from the first one's beginning, and their frames."""
    frames: list[list[bytes]] = [[], []]
    runs = talk(own, peer), talk(peer, own)
    totals = sum(map(len, peer)), sum(map(len, own))
    ends = [Course(runs[i], frames[i].append, totals[i]) for i in (0, 1)]
    heard = [0, 0]
    ends[0].begin()
    while any(heard[i] < len(frames[1 - i]) for i in (0, 1)):
        for i in (0, 1):
            while heard[i] < len(frames[1 - i]):
                data, heard[i] = frames[1 - i][heard[i]], heard[i] + 1
                size = -(-len(data) // cuts)
                for first in range(0, len(data), size):
                    ends[i].feed(data[first : first + size])
    return ends, frames


def test_ends_that_push_each_other_on() -> None:
    rng = np.random.default_rng(5)
    first = [rng.bytes(n) for n in (3, PIECE + 5, 0, 17, 0)]
    second = [rng.bytes(n) for n in (0, 3 * PIECE, 0, 0, 1)]
    ends, _ = opposite(first, second, cuts=3)
    for end, own, peer in ((ends[0], first, second), (ends[1], second, first)):
        assert end.over
        assert end.complete
        made = end.wait(0)
        assert made.result == peer
        assert (made.sent, made.received) == (sum(map(len, own)), sum(map(len, peer)))
        assert made.flights == 4
        end.fail(PeerUnavailable("later"))
        assert end.wait(0) is made


def test_a_frame_carries_all_that_can_be_said() -> None:
    """One end speaks at a time, and says its part of two exchanges at once."""
    small = [b"x"] * 6
    _, frames = opposite(small, small)
    assert [[len(frame) for frame in each] for each in frames] == [[1, 2, 2, 1], [2, 2, 2]]
    large = [bytes(HELD)] * 3
    _, frames = opposite(large, large)
    assert [[len(frame) for frame in each] for each in frames] == [[HELD] * 3, [HELD] * 3]


def test_a_course_takes_no_more_than_its_run() -> None:
    course = Course(talk([b"a", b"b"], [b"cde", b"fg"]), lambda _: None, 5)
    course.feed(b"c")
    for data in (b"", b"defgh"):
        with pytest.raises(MalformedMessage, match="left of a run"):
            course.feed(data)
    course.feed(b"defg")
    assert course.wait(0).result == [b"cde", b"fg"]
    with pytest.raises(MalformedMessage):
        course.feed(b"h")


def test_a_course_that_fails_tells_who_waits() -> None:
    ended = []

    def run(message: bytes) -> Joint[None]:
        try:
            if (yield from swap(b"x", 1)) != message:
                raise MalformedMessage("a message")
            yield from swap(b"x", 1)
        finally:
            ended.append(True)

    wrong = Course(run(b"a"), lambda _: None, 2)
    wrong.begin()
    wrong.feed(b"b")
    with pytest.raises(MalformedMessage, match="a message"):
        wrong.wait(ample(10))
    wrong.feed(b"b")  # to nobody
    given_up = Course(run(b"a"), lambda _: None, 2)
    given_up.begin()
    with pytest.raises(DeadlineExceeded):
        given_up.wait(0)
    given_up.fail(PeerUnavailable("gone"))
    given_up.begin()
    with pytest.raises(PeerUnavailable, match="gone"):
        given_up.wait(ample(10))
    assert ended == [True, True]
