"""Requests that join: who waits, how long, and what one bad request costs the others."""

import asyncio
from types import SimpleNamespace

import pytest
from clock import run
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_quant.errors import DeadlineExceeded, MalformedMessage, PeerUnavailable
from secure_quant.mpc.runtime.jobs import Answer, Job
from secure_quant_server.mpc.batching import Batcher


def request(number, batch=1, model="m", wait_s=5.0):
    share = bytes([number]) * batch
    return Job(model, (f"{number:032x}",), (batch,), ("ann",), wait_s, share)


class Lane:
    """Answers a request with its own share; refuses a job that holds one of ``bad``."""

    def __init__(self, seconds=0.02, bad=(), error=None):
        self.seconds, self.bad, self.error = seconds, set(bad), error
        self.jobs, self.load = [], 0

    async def infer(self, job):
        ids = [int(each, 16) for each in job.ids]
        self.jobs.append((ids, job.wait_s))
        self.load += len(ids)
        try:
            await asyncio.sleep(self.seconds)
            if self.error is not None and self.bad & set(ids):
                raise self.error
            return Answer(job.ids, job.batches, 3, 10, 20, 30, job.share)
        finally:
            self.load -= len(ids)


def batcher(lane, samples=8, wait_s=0.5):
    return Batcher(SimpleNamespace(choose=lambda _: lane), samples=samples, wait_s=wait_s)


async def answers(made, requests):
    found = await asyncio.gather(*(made.infer(r) for r in requests), return_exceptions=True)
    return [each.share if isinstance(each, Answer) else type(each) for each in found]


def test_an_idle_lane_is_used_at_once():
    lane = Lane()

    async def work():
        for number in (1, 2):
            await batcher(lane).infer(request(number))

    run(work())
    assert [ids for ids, _ in lane.jobs] == [[1], [2]]


def test_while_a_lane_is_busy_requests_join_and_go_when_it_is_free():
    lane = Lane()
    requests = [request(n, batch=1 + n % 2) for n in range(1, 5)]
    assert run(answers(batcher(lane), requests)) == [each.share for each in requests]
    assert [ids for ids, _ in lane.jobs] == [[1], [2, 3, 4]]


def test_a_full_batch_does_not_wait():
    lane = Lane(seconds=0.2)
    run(answers(batcher(lane, samples=3), [request(n) for n in range(1, 9)]))
    jobs = [ids for ids, _ in lane.jobs]
    assert jobs == [[1], [2, 3, 4], [5, 6, 7], [8]]


def test_the_wait_is_bounded():
    lane = Lane(seconds=1.0)

    async def work():
        made, loop = batcher(lane, wait_s=0.05), asyncio.get_running_loop()
        tasks = [asyncio.ensure_future(made.infer(request(n))) for n in (1, 2)]
        begun = loop.time()
        while len(lane.jobs) < 2:
            await asyncio.sleep(0.005)
        waited = loop.time() - begun
        await asyncio.gather(*tasks)
        return waited

    assert 0.05 <= run(work()) < 0.06


def test_without_a_wait_nothing_is_joined():
    lane = Lane()
    run(answers(batcher(lane, wait_s=0), [request(n) for n in range(4)]))
    assert [ids for ids, _ in lane.jobs] == [[0], [1], [2], [3]]


@pytest.mark.parametrize("error", [DeadlineExceeded("share"), MalformedMessage("batch")])
def test_a_bad_request_fails_alone_and_holds_the_others_up_briefly(error):
    lane = Lane(bad=[3], error=error)
    requests = [request(n) for n in range(1, 6)]
    found = run(answers(batcher(lane), requests))
    assert found == [r.share if n != 3 else type(error) for n, r in enumerate(requests, 1)]
    joined = [wait_s for ids, wait_s in lane.jobs if len(ids) > 1]
    alone = [wait_s for ids, wait_s in lane.jobs if len(ids) == 1]
    assert max(joined) <= 0.25
    assert set(alone) == {5.0}


def test_a_lost_lane_fails_everybody_and_nothing_is_sent_twice():
    lane = Lane(bad=[2], error=PeerUnavailable("gone"))
    found = run(answers(batcher(lane), [request(n) for n in (1, 2, 3)]))
    assert found == [request(1).share, PeerUnavailable, PeerUnavailable]
    assert [ids for ids, _ in lane.jobs] == [[1], [2, 3]]


def test_whoever_has_gone_is_left_out():
    lane = Lane(seconds=0.1)

    async def work():
        made = batcher(lane)
        tasks = [asyncio.ensure_future(made.infer(request(n))) for n in (1, 2, 3)]
        await asyncio.sleep(0.02)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(work())
    assert [ids for ids, _ in lane.jobs] == [[1], [3]]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from("ab")), max_size=30))
def test_everybody_gets_their_own_answer_and_batches_stay_in_bounds(calls):
    lane = Lane(seconds=0.001)
    requests = [request(n, batch, model) for n, (batch, model) in enumerate(calls)]
    found = run(answers(batcher(lane, samples=6), requests))
    assert found == [each.share for each in requests]
    for ids, _ in lane.jobs:
        assert sum(calls[n][0] for n in ids) <= 6
        assert len({calls[n][1] for n in ids}) == 1
