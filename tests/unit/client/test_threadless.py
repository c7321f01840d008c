"""Calls that no thread of gRPC's waits for, against a server in this process."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from patience import ample

from secure_quant.errors import MalformedMessage
from secure_quant.transport import InsecurePlaintext
from secure_quant_client import threadless as module
from secure_quant_client.threadless import Begun, Lookout, Threadless, threadless_channel


class Servicer(grpc.GenericRpcHandler):
    """Echo gives requests back, Refuse does not, Wait waits until nobody waits for it."""

    def __init__(self):
        self.came, self.left = threading.Semaphore(0), threading.Semaphore(0)

    def service(self, details):
        method = {"/t/Echo": self.echo, "/t/Refuse": self.refuse, "/t/Wait": self.wait}
        return grpc.unary_unary_rpc_method_handler(method[details.method])

    def echo(self, request, context):
        return request + dict(context.invocation_metadata()).get("more", "").encode()

    def refuse(self, request, context):
        context.set_trailing_metadata((("why", "so"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")

    def wait(self, request, context):
        self.came.release()
        ended = threading.Event()
        if context.add_callback(ended.set):
            ended.wait(ample(30))
        self.left.release()
        return request


@contextmanager
def served():
    servicer, server = Servicer(), grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((servicer,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = threadless_channel(f"127.0.0.1:{port}", InsecurePlaintext(), server_role="party0")
    try:
        yield channel, servicer
    finally:
        channel.close()
        server.stop(None)


def until(condition):
    limit = time.monotonic() + ample(20)
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_many_at_once_are_answered_and_no_thread_is_started_for_them(monkeypatch):
    monkeypatch.setattr(Lookout, "mind", lambda *_: None)  # as if every answer were quick
    with served() as (channel, _):
        echo = channel.unary_unary("/t/Echo")
        assert echo(b"connected", timeout=ample(20)) == b"connected"
        before = threading.enumerate()
        requests = [bytes([n]) * 1000 for n in range(20)]
        calls = [echo.future(each, timeout=ample(20)) for each in requests]
        assert {type(call) for call in calls} == {Begun}
        assert [call.result() for call in calls] == requests
        new = [each for each in threading.enumerate() if each not in before]
        assert not [each for each in new if not each.name.startswith("ThreadPool")]  # the server's


def test_a_call_has_its_metadata_and_is_the_usual_one_where_it_is_waited_for():
    with served() as (channel, _):
        echo, told = channel.unary_unary("/t/Echo"), {"metadata": (("more", "!"),)}
        assert echo(b"x", timeout=ample(20), **told) == b"x!"
        assert echo.future(b"y", timeout=ample(20), **told).result() == b"y!"


def test_a_refusal_says_what_it_says_in_any_call():
    with served() as (channel, _):
        call = channel.unary_unary("/t/Refuse").future(b"x", timeout=ample(20))
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        told = caught.value
        assert (told.code(), told.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
        assert ("why", "so") in [tuple(each) for each in told.trailing_metadata()]
        assert call.code() is told.code()
        assert call.exception() is told
        assert not call.cancelled()


def test_a_deadline_ends_a_call():
    with served() as (channel, _):
        call = channel.unary_unary("/t/Wait").future(b"x", timeout=1.0)
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_failure_is_told_at_once_though_another_call_is_waited_for():
    """As drivers do it: whoever waits for one call is let go by the failure of the other."""
    with served() as (channel, servicer):
        waits = channel.unary_unary("/t/Wait").future(b"x", timeout=ample(30))
        assert servicer.came.acquire(timeout=ample(20))
        refused = channel.unary_unary("/t/Refuse").future(b"x", timeout=ample(30))
        refused.add_done_callback(lambda _: waits.cancel())
        with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
            waits.result()
        assert waits.cancelled()
        assert refused.exception().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert servicer.left.acquire(timeout=ample(20))


def test_a_callback_comes_also_after_the_end():
    with served() as (channel, _):
        call, seen = channel.unary_unary("/t/Echo").future(b"x", timeout=ample(20)), []
        call.result()
        call.add_done_callback(seen.append)
        assert seen == [call]
        assert not call.cancel()


def test_two_threads_may_wait_for_one_call():
    with served() as (channel, _), ThreadPoolExecutor(2) as pool:
        call = channel.unary_unary("/t/Echo").future(b"x", timeout=ample(20))
        assert list(pool.map(lambda _: call.result(), range(2))) == [b"x", b"x"]


def test_after_many_that_were_cancelled_calls_go_the_usual_way(monkeypatch):
    monkeypatch.setattr(module, "MOST_CANCELLED", 3)
    with served() as (channel, _):
        wait = channel.unary_unary("/t/Wait")
        for _ in range(3):
            call = wait.future(b"x", timeout=ample(30))
            assert isinstance(call, Begun)
            assert call.cancel()
            assert not call.cancel()
        usual = channel.unary_unary("/t/Echo").future(b"x", timeout=ample(20))
        assert not isinstance(usual, Begun)
        assert usual.result() == b"x"


class Answers:
    """A call of gRPC's that brings these."""

    def __init__(self, *answers):
        self._answers, self.read = answers, threading.Event()

    def __iter__(self):
        self.read.set()
        return iter(self._answers)


@pytest.mark.parametrize("answers", [(), (b"one", b"two")])
def test_a_server_that_answers_not_once_is_not_believed(answers):
    with pytest.raises(MalformedMessage, match="answer"):
        Begun(Answers(*answers), lambda: None).result()


def test_the_lookout_reads_what_nobody_reads_and_ends_at_rest(monkeypatch):
    monkeypatch.setattr(module, "REST_S", 2 * module.LOOK_S)
    lookout, before = Lookout(), set(threading.enumerate())
    for _ in range(2):  # it begins anew
        calls = [Answers(b"x") for _ in range(3)]
        for each in calls:
            lookout.mind(Begun(each, lambda: None))
        assert all(each.read.wait(ample(20)) for each in calls)
        until(lambda: set(threading.enumerate()) <= before)


def test_a_call_in_a_hurry_is_read_though_nobody_waits_for_it(monkeypatch):
    """As a driver does while it hears of an inference's progress."""
    monkeypatch.setattr(Lookout, "mind", lambda *_: None)
    with served() as (channel, _):
        call, ended = channel.unary_unary("/t/Echo").future(b"x", timeout=ample(20)), []
        call.add_done_callback(ended.append)
        call.hurry()
        until(lambda: ended == [call])
        assert call.result() == b"x"


def test_streams_of_answers_come_as_ever_and_may_be_left():
    with served() as (channel, servicer):
        assert list(channel.unary_stream("/t/Echo")(b"x", timeout=ample(20))) == [b"x"]
        stream = channel.unary_stream("/t/Wait")(b"x", timeout=ample(30))
        assert isinstance(stream, grpc.Future)
        assert servicer.came.acquire(timeout=ample(20))
        assert stream.cancel()
        assert servicer.left.acquire(timeout=ample(20))


def test_what_else_a_channel_has_is_still_there():
    channel = Threadless(grpc.insecure_channel("127.0.0.1:1"))
    assert channel.stream_unary("/t/Echo") is not None
    channel.close()
