"""What one caller uploads costs nobody else a session in use."""

from __future__ import annotations

import pytest

from secure_quant.errors import MalformedMessage, Overloaded
from secure_quant_server.he.key_store import IDLE_S, SESSION_BYTES, SHARES, UPLOADS, KeyStore

SIZE = 100
TOTAL = 1600


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def store(clock: Clock | None = None) -> KeyStore:
    return KeyStore(SIZE, TOTAL, clock=clock or Clock())


def opened(keys: KeyStore, caller: str) -> bytes:
    with keys.upload(caller, "m", SIZE) as upload:
        upload.add(bytes(SIZE - 1))
        upload.add(b"x")
        return upload.finish()


def test_streams_of_one_byte_take_one_byte_each() -> None:
    """45 of them closed a server to everyone: each took room for whole keys, and others' went."""
    keys = KeyStore(11_600_000)
    with keys.upload("alice", "m", SIZE) as upload:
        upload.add(bytes(SIZE))
        hers = upload.finish()
    refused, streams = 0, []
    for _ in range(45):
        try:
            streams.append(keys.upload("mallory", "m", 11_600_000).__enter__())
        except Overloaded:
            refused += 1
            continue
        streams[-1].add(b"x")
    assert refused == 45 - UPLOADS
    assert keys.find(hers) is not None
    assert keys.find(opened(keys, "bob")) is not None
    for stream in streams:
        stream.__exit__(None, None, None)
    assert keys.find(opened(keys, "mallory")) is not None  # and it is counted down again


def test_a_caller_makes_room_for_itself_alone() -> None:
    keys = store()
    assert keys.quota == TOTAL // SHARES == 2 * SIZE
    hers = opened(keys, "alice")
    his = [opened(keys, "mallory") for _ in range(50)]
    assert [keys.find(each) is not None for each in his] == [False] * 48 + [True] * 2
    assert keys.find(hers) is not None


def test_uploads_beyond_the_quota_are_refused_while_under_way() -> None:
    keys = store()
    with keys.upload("mallory", "m", SIZE) as first, keys.upload("mallory", "m", SIZE) as second:
        first.add(bytes(SIZE))
        second.add(bytes(SIZE))
        with keys.upload("mallory", "m", SIZE) as third, pytest.raises(Overloaded, match="one"):
            third.add(b"x")
        with keys.upload("alice", "m", SIZE) as hers:
            hers.add(bytes(SIZE))
            hers.finish()
    assert keys.find(opened(keys, "mallory")) is not None


def test_a_full_server_refuses_the_next_caller_and_drops_what_is_idle() -> None:
    clock = Clock()
    keys = store(clock)
    held = [opened(keys, f"caller {i // 2}") for i in range(TOTAL // SIZE)]
    with pytest.raises(Overloaded, match="evaluation keys: expected <= 1600"):
        opened(keys, "late")
    clock.now = IDLE_S - 1
    assert keys.find(held[0]) is not None  # used once more
    clock.now = IDLE_S
    assert keys.find(opened(keys, "late")) is not None
    assert [keys.find(each) is None for each in held[:3]] == [False, True, False]


def test_a_stream_that_breaks_gives_its_room_back() -> None:
    keys = store()
    for _ in range(TOTAL):
        with keys.upload("a", "m", SIZE) as upload:
            upload.add(bytes(SIZE))
            with pytest.raises(MalformedMessage, match="more"):
                upload.add(b"x")
        with keys.upload("a", "m", SIZE) as upload:
            upload.add(bytes(SIZE - 1))
            with pytest.raises(MalformedMessage, match="100"):
                upload.finish()
    assert keys.find(opened(keys, "a")) is not None
    keys.clear()
    assert not keys._taken
    assert not keys._uploads


def test_the_largest_keys_fit_a_quota() -> None:
    assert KeyStore(SESSION_BYTES // 4).quota == SESSION_BYTES // 2
    assert KeyStore(SESSION_BYTES).quota == SESSION_BYTES
